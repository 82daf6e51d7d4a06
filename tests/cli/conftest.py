"""A tiny recipe, and one run of it that several tests look at."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hf_vaq.cli import main

TINY = {
    "model_config": {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "dataset": "digits",
    "train_split": "train[:64]",
    "eval_split": "test[:40]",
    "horizontal_flip": 0,
    "float_num_train_epochs": 1,
    "weight_bits": 2,
    "activation_bits": 2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 20,
    "calibration_batches": 2,
    "learning_rate": "5e-4",
    "save_strategy": "epoch",
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_recipe(folder: Path, **values) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **values}))
    return path


@dataclass
class Run:
    recipe: Path
    folder: Path
    stdout: str
    stderr: str

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text())


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Run:
    """The whole main job through the command, with a few steps."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", str(recipe), "--output_dir", str(folder / "out"), "--seed", "3"])
    assert code == 0, err.getvalue()
    return Run(recipe, folder / "out", out.getvalue(), err.getvalue())
