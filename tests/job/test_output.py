import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_vaq.job.output import abandon, check_output_folder, claim_output_folder, new_folder, weights_size, write_json
from hf_vaq.job.run_files import NoteLogs, RunRecord, foreign_files


def make_run(folder):
    """A folder as a run leaves it: three files it noted, and a checkpoint with its own list."""
    record = RunRecord(folder, {"seed": 1}, {}, ["run.json", "recipe.yaml", "results.json", "packed/config.json"])
    record.write()
    (folder / "packed").mkdir()
    (folder / "checkpoint-5").mkdir()
    (folder / "packed" / "config.json").write_text("{}")
    (folder / "checkpoint-5" / "checkpoint.json").write_text(json.dumps({"files": {"optimizer.pt": 3}}))
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(bytes(3))
    (folder / "recipe.yaml").write_text("seed: 1\n")
    (folder / "results.json").write_text("{}")
    return record


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


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


def test_overwriting_removes_a_run_whole(tmp_path):
    make_run(tmp_path)
    (tmp_path / ".packed.partial-ab12cd34").mkdir()
    (tmp_path / ".packed.partial-ab12cd34" / "model.safetensors").write_text("half")
    claim_output_folder(tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        "packed/keep.bin",
        "checkpoint-5/notes.txt",
        "checkpoint-of-my-thesis/thesis.tex",
        "checkpoint-7/model.safetensors",
        "runs/other_project/notes.txt",
        "float/notes.txt",
        ".mine.partial-backup/data",
        ".packed.partial-backup",
        "packed/.config.json.partial-77",
    ],
)
def test_overwriting_refuses_and_keeps_what_no_run_wrote(tmp_path, name):
    make_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=rf"holds '{re.escape(name)}', which no run wrote"):
        claim_output_folder(tmp_path, overwrite=True)
    assert tree(tmp_path) == before


def test_names_that_a_run_would_use_do_not_make_a_folder_its_own(tmp_path):
    for name in ("recipe.yaml", "packed/config.json", "checkpoint-5/checkpoint.json", "results.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("by hand")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="which no run wrote"):
        claim_output_folder(tmp_path, overwrite=True)
    assert tree(tmp_path) == before


def test_overwriting_follows_no_link_out_of_the_folder(tmp_path):
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    make_run(folder)
    shutil.move(folder / "packed", elsewhere)
    (folder / "packed").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="holds 'packed', which no run wrote"):
        claim_output_folder(folder, overwrite=True)
    assert os.listdir(elsewhere) == ["config.json"]


def test_a_list_that_points_elsewhere_removes_nothing_there(tmp_path):
    folder = tmp_path / "out"
    record = make_run(folder)
    (tmp_path / "precious").write_text("x")
    record.add(["../precious", str(tmp_path / "precious"), "*"])
    (folder / "notes").write_text("x")
    with pytest.raises(ValueError, match="holds 'notes'"):
        claim_output_folder(folder, overwrite=True)
    (folder / "notes").unlink()
    claim_output_folder(folder, overwrite=True)
    assert (tmp_path / "precious").exists() and os.listdir(folder) == []


def test_a_damaged_record_is_refused(tmp_path):
    for content in ("{", "[]", "{}", '{"recipe": {}, "inputs": {}, "files": [1]}', "[" * 100_000):
        (tmp_path / "run.json").write_text(content)
        for way in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(ValueError, match=r"run\.json' (cannot be read|is not what a run writes)"):
                claim_output_folder(tmp_path, **way)


def test_checking_changes_nothing(tmp_path):
    make_run(tmp_path / "out")
    (tmp_path / "out" / ".results.json.partial-77").write_text("{")
    before = tree(tmp_path)
    check_output_folder(tmp_path / "out", overwrite=True)
    check_output_folder(tmp_path / "out", resume=True)
    check_output_folder(tmp_path / "new" / "deep")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["/", "~", ".", "..", "home", ""])
@pytest.mark.parametrize("way", [{}, {"resume": True}, {"overwrite": True}])
def test_folders_that_people_live_in_are_refused(tmp_path, monkeypatch, place, way):
    home, here = tmp_path / "home" / "me", tmp_path / "work" / "project"
    home.mkdir(parents=True)
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    folder = tmp_path / "home" if place == "home" else Path(place)
    with pytest.raises(ValueError, match=r"output_dir is .* accepted: a folder of its own"):
        claim_output_folder(folder, **way)
    claim_output_folder(Path("outputs") / "mine", **way)
    claim_output_folder(home / "mine", **way)


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
    (tmp_path / ".mine.partial-backup").write_text("not of the run")
    for name in (
        ".checkpoint-9.partial-save",
        ".packed.partial-x1_yz2ab",
        "float_checkpoints/.checkpoint-2.partial-save",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3))
    (tmp_path / ".results.json.partial-77").write_text("{")
    claim_output_folder(tmp_path, resume=True)
    assert sorted(os.listdir(tmp_path)) == [
        ".mine.partial-backup",
        "checkpoint-5",
        "packed",
        "recipe.yaml",
        "results.json",
        "run.json",
    ]


@pytest.mark.parametrize("name", ["packed/onnx/model.onnx", "trained/notes.txt", "oscillation/plot.png"])
def test_resuming_refuses_what_it_would_remove_on_the_way(tmp_path, name):
    make_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"holds '{name}', which the run did not write"):
        claim_output_folder(tmp_path, resume=True)
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("beside the models nothing is removed")
    assert claim_output_folder(tmp_path, resume=True).recipe == {"seed": 1}


def test_resuming_removes_nothing_where_there_is_no_run(tmp_path):
    for name in (".mine.partial-backup/data", ".packed.partial-ab12cd34/data", "other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("canary")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="no run to resume"):
        claim_output_folder(tmp_path, resume=True)
    assert tree(tmp_path) == before


def test_a_run_that_trained_nothing_leaves_nothing(tmp_path):
    record = RunRecord(tmp_path / "out", {}, {})
    record.write()
    (tmp_path / "out" / "recipe.yaml").write_text("a: 1\n")
    abandon(record)
    assert os.listdir(tmp_path / "out") == []
    record = make_run(tmp_path / "other")
    before = tree(tmp_path)
    abandon(record)
    assert tree(tmp_path) == before


def test_files_that_a_logger_opens_belong_to_the_run(tmp_path):
    record = make_run(tmp_path)
    (tmp_path / "runs" / "of_mine").mkdir(parents=True)
    (tmp_path / "runs" / "of_mine" / "events.1").write_text("")
    note = NoteLogs(record, str(tmp_path))
    (tmp_path / "runs" / "now").mkdir()
    (tmp_path / "runs" / "now" / "events.2").write_text("")
    note.on_train_begin(None, SimpleNamespace(is_world_process_zero=True), None)
    assert foreign_files(RunRecord.read(tmp_path), tmp_path) == ["runs/of_mine/events.1"]


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
