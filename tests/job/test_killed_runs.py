"""A run that is killed, wherever that happens, ends as one that was never interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import TINY_RECIPE
from safetensors.torch import load_file

from hf_vaq.cli import main
from hf_vaq.training import checkpoints

RECIPE = {
    **TINY_RECIPE,
    "train_split": "train[:48]",
    "num_train_epochs": 3,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
    "bin_regularization": 1.0,
    "bin_regularization_start": 0.0,
}


@pytest.mark.parametrize(
    "kills", [pytest.param(3, id="three kills"), pytest.param(24, id="24 kills", marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_from_its_last_complete_checkpoint_bit_for_bit(tmp_path, kills):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    script = Path(__file__).with_name("kill_helpers.py")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe), str(tmp_path / "runs"), str(kills), "1"],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["kills"] == kills and report["while_saving"] >= kills // 2
    whole = tmp_path / "runs" / "whole"
    for number in range(report["runs"]):
        killed = tmp_path / "runs" / f"killed{number}"
        for name in ("float", "trained", "packed"):
            expected = load_file(whole / name / "model.safetensors")
            found = load_file(killed / name / "model.safetensors")
            assert expected.keys() == found.keys() and all(expected[key].equal(found[key]) for key in expected), name
        results = [json.loads((path / "results.json").read_text()) for path in (whole, killed)]
        assert results[0]["quantized"]["top1"] == results[1]["quantized"]["top1"]
        assert sorted(os.listdir(killed)) == sorted(os.listdir(whole)), "nothing half-written is left"
        record = [path / "oscillation" / "trajectories.parquet" for path in (whole, killed)]
        assert record[0].read_bytes() == record[1].read_bytes()


def test_a_full_disk_ends_a_run_with_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    full, flush = [False, False, False, True], checkpoints.flush_folder

    def flush_or_fail(folder):
        if full and full.pop(0):
            raise OSError(28, "No space left on device")
        flush(folder)

    monkeypatch.setattr(checkpoints, "flush_folder", flush_or_fail)
    out = tmp_path / "out"
    assert main(["train", str(recipe), "--output_dir", str(out), "--logging_strategy", "no"]) == 1
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"hf-vaq train: error: checkpoint-1 cannot be written to '{out}': No space left on device")
    assert error.endswith("No checkpoint was written before it.")
    assert sorted(os.listdir(out)) == ["float", "recipe.yaml", "run.json"]
    resume = ["--resume_from_checkpoint", "true", "--logging_strategy", "no"]
    assert main(["train", str(recipe), "--output_dir", str(out), *resume]) == 0
    assert (out / "packed" / "model.safetensors").exists()
