"""The launch files of recipes/accelerate: accelerate reads them, and they start what they say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers import TINY_RECIPE
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[1] / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def parsed(path):
    """What accelerate makes of a launch file, as its command does before it starts processes."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), "-m", "hf_vaq", "train", "recipe.yaml"])
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_a_launch_file_and_starts_several_processes(path):
    arguments = parsed(path)
    assert arguments.num_processes > 1
    assert arguments.multi_gpu or arguments.use_fsdp or arguments.use_deepspeed, "else one process is started"
    kind = path.stem.split("_")[0]
    assert (arguments.use_fsdp, arguments.use_deepspeed) == (kind == "fsdp2", kind == "deepspeed")
    assert arguments.num_machines == (2 if "two_machines" in path.stem else 1)
    assert arguments.num_processes % arguments.num_machines == 0
    # Precision is the recipe's; two places could contradict each other.
    assert arguments.mixed_precision == "no"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("fsdp2")], ids=lambda path: path.stem)
def test_sharding_is_what_the_trainer_accepts(path):
    arguments = parsed(path)
    assert int(arguments.fsdp_version) == 2
    assert str(arguments.fsdp_cpu_ram_efficient_loading).lower() == "false"


def test_deepspeed_shards_as_its_launch_file_says_and_leaves_the_parameters_in_float32():
    named = load_config_from_file(str(FOLDER / "deepspeed_zero2.yaml")).deepspeed_config["deepspeed_config_file"]
    settings = json.loads((FOLDER.parents[1] / named).read_text())
    assert settings["zero_optimization"]["stage"] == 2
    assert "bf16" not in settings and "fp16" not in settings and settings["torch_autocast"]["enabled"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_launch_file_gives_its_command_and_is_in_the_readme(path):
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"accelerate launch --config_file recipes/accelerate/{path.name}" in head
    readme = (FOLDER / "README.md").read_text()
    assert f"`{path.name}`" in readme and f"--config_file recipes/accelerate/{path.name}" in readme
    assert set(re.findall(r"recipes/accelerate/(\S+\.yaml)", readme)) == {path.name for path in FILES}


@pytest.mark.slow
def test_a_recipe_runs_in_two_processes_and_gives_what_one_gives(tmp_path):
    # Weights only: see tests/training/test_distributed.py for what quantized activations change.
    recipe = tmp_path / "recipe.yaml"
    bits = {"weight_bits": 2, "activation_bits": None, "edge_bits": None}
    recipe.write_text(yaml.safe_dump(TINY_RECIPE | bits | {"output_dir": str(tmp_path / "one"), "optim": "sgd"}))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = ["hf_vaq", "train", str(recipe)]
    subprocess.run([sys.executable, "-m", *run], env=environment, check=True, timeout=300)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "ddp_cpu.yaml"), "-m"]
    two = ["--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "8", "--calibration_batches", "4"]
    done = subprocess.run([*launch, *run, *two], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "full precision" in done.stdout
    one, other = (load_file(tmp_path / name / "trained" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.allclose(other[name], rtol=1e-4, atol=1e-6), name
    manifest = json.loads((tmp_path / "two" / "checkpoint-8" / "checkpoint.json").read_text())
    assert manifest["processes"] == 2
