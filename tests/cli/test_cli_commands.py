"""The other commands, and what all commands have in common."""

import os
import runpy
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_vaq.cli import main
from hf_vaq.recipe import shipped_recipes
from hf_vaq.version import __version__


@pytest.mark.parametrize("checkpoint", ["trained", "checkpoint-8"])
def test_pack_gives_the_model_that_the_main_job_packed(tiny_run, checkpoint, tmp_path, capsys):
    out = tmp_path / "packed"
    assert main(["pack", str(tiny_run.folder / checkpoint), str(out)]) == 0
    assert "kB of packed weights" in capsys.readouterr().out
    of_the_run = {"recipe.yaml", "results.json", "training_log.json"}
    assert set(os.listdir(out)) == set(os.listdir(tiny_run.folder / "packed")) - of_the_run
    assert (out / "model.safetensors").read_bytes() == (tiny_run.folder / "packed" / "model.safetensors").read_bytes()
    assert os.listdir(tmp_path) == ["packed"]


def test_pack_of_a_model_that_is_not_quantized_leaves_nothing(tiny_run, tmp_path, capsys):
    assert main(["pack", str(tiny_run.folder / "float"), str(tmp_path / "out")]) == 1
    assert "not quantized" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_pack_of_a_packed_model_leaves_nothing(tiny_run, tmp_path, capsys):
    assert main(["pack", str(tiny_run.folder / "packed"), str(tmp_path / "out")]) == 1
    assert "packed already" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_pack_refuses_a_folder_in_use_and_keeps_it(tiny_run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["pack", str(tiny_run.folder / "trained"), str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_pack_says_when_there_is_no_image_processor(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run.folder / "trained", tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    assert main(["pack", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert "has no image processor" in capsys.readouterr().err
    packed = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert packed(pixel_values=torch.zeros(1, 3, 8, 8)).logits.shape == (1, 10)


def test_recipes_lists_every_recipe_with_its_first_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    for line, path in zip(lines, shipped_recipes().values(), strict=True):
        assert line.endswith(path.read_text().splitlines()[0].removeprefix("# "))


def test_recipes_copies_one_and_never_over_a_file(tmp_path, capsys):
    assert main(["recipes", "--copy", "digits/vit_w2a2", str(tmp_path)]) == 0
    copy = tmp_path / "vit_w2a2.yaml"
    assert copy.read_text() == shipped_recipes()["digits/vit_w2a2"].read_text()
    copy.write_text("mine")
    assert main(["recipes", "--copy", "digits/vit_w2a2", str(copy)]) == 1
    assert "exists already" in capsys.readouterr().err and copy.read_text() == "mine"


def test_help_of_train_lists_the_fields(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for field in ("--weight_bits", "--dataset", "--float_num_train_epochs", "--bin_regularization", "--teacher"):
        assert f"  {field}\n" in text
    assert "--push_to_hub" not in text and "transformers.TrainingArguments" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian", "x"],
        ["evaluate", "model"],
        ["pack", "a", "b", "--fast"],
        ["train", "--seed", "1", "digits/vit_w2a2"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("usage: hf-vaq")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        main(["train", str(tmp_path / "absent.yaml"), "--debug"])


def test_an_interrupt_ends_quietly(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_vaq.recipe.shipped.shipped_recipes", interrupted)
    assert main(["recipes"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("x")

    monkeypatch.setattr("hf_vaq.recipe.shipped.shipped_recipes", broken)
    with pytest.raises(KeyError):
        main(["recipes"])


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-m", "--version"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("hf_vaq", run_name="__main__", alter_sys=True)  # what `python -m hf_vaq` does
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"hf-vaq {__version__}\n"
