import json
import os

import pytest

from hf_vaq.job.output import claim_output_folder, new_folder, weights_size, write_json


def make_run(folder):
    (folder / "packed").mkdir(parents=True)
    (folder / "checkpoint-5").mkdir()
    (folder / "recipe.yaml").write_text("model: x\n")
    (folder / "results.json").write_text("{}")


def test_a_new_and_an_empty_folder_are_accepted(tmp_path):
    claim_output_folder(tmp_path / "a" / "b")
    claim_output_folder(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_a_folder_in_use_is_refused_with_the_three_ways_out(tmp_path):
    make_run(tmp_path)
    with pytest.raises(
        ValueError, match=r"is not empty.*--output_dir.*--resume_from_checkpoint.*--overwrite_output_dir"
    ):
        claim_output_folder(tmp_path)
    assert (tmp_path / "results.json").exists()


def test_overwriting_removes_a_run_and_nothing_else(tmp_path):
    make_run(tmp_path)
    claim_output_folder(tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == []
    make_run(tmp_path)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"'thesis\.tex'"):
        claim_output_folder(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "results.json").exists()


def test_resuming_goes_on_with_a_run_or_begins_one(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex' and no run to resume"):
        claim_output_folder(tmp_path, resume=True)
    (tmp_path / "thesis.tex").unlink()
    # Killed before it had written anything: the same command starts it again.
    claim_output_folder(tmp_path, resume=True)
    claim_output_folder(tmp_path / "new", resume=True)
    assert (tmp_path / "new").is_dir()
    (tmp_path / "new").rmdir()
    make_run(tmp_path)
    claim_output_folder(tmp_path, resume=True)
    assert (tmp_path / "packed").exists()


def test_resuming_removes_what_a_killed_run_left_half_written(tmp_path):
    make_run(tmp_path)
    for name in (".checkpoint-9.partial-save", ".packed.partial-x1", "float_checkpoints/.checkpoint-2.partial-save"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3))
    (tmp_path / ".results.json.partial-77").write_text("{")
    claim_output_folder(tmp_path, resume=True)
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint-5",
        "float_checkpoints",
        "packed",
        "recipe.yaml",
        "results.json",
    ]
    assert os.listdir(tmp_path / "float_checkpoints") == []


def test_resuming_needs_to_know_what_to_do(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ValueError, match="exclude each other"):
        claim_output_folder(tmp_path, resume=True, overwrite=True)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Not a directory"):
        claim_output_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="Not a directory"):
        claim_output_folder(tmp_path / "file" / "below")


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, who is denied nothing.
    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(ValueError, match="cannot be written: Permission denied"):
        claim_output_folder(tmp_path / "out")


def test_a_new_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out" / "a").read_text() == "1"
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_failure_leaves_nothing_half_written(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_failure_to_replace_keeps_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(ValueError, match="is not empty"), new_folder(tmp_path / "out"):
        pytest.fail("not reached")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", replace=True):
        raise RuntimeError
    assert os.listdir(tmp_path / "out") == ["old"]
    with new_folder(tmp_path / "out", replace=True) as partial:
        (partial / "new").write_text("2")
    assert os.listdir(tmp_path / "out") == ["new"]


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(tmp_path / "deep" / "x.json", {"a": object()})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path / "deep") == ["x.json"]
    with pytest.raises(ValueError, match="cannot be written"):
        write_json(tmp_path / "deep" / "x.json" / "y.json", {})


def test_the_size_of_a_model_is_that_of_its_safetensors_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(10))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(5))
    (tmp_path / "config.json").write_bytes(bytes(100))
    assert weights_size(tmp_path) == 15
