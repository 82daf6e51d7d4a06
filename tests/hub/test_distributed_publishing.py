"""Publishing from several processes, of which each holds a part of what is trained."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hub_client_helpers import environment

sys.path.append(str(Path(__file__).parents[1] / "training"))
from distributed_helpers import finish, launch, output

DEEPSPEED = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason='needs pip install "hf-vaq[deepspeed]"'),
]


@pytest.mark.parametrize("scenario", ["publish_fsdp", pytest.param("publish_zero2", marks=DEEPSPEED)])
def test_one_process_publishes_the_packed_model_of_all(scenario, hub, tmp_path):
    folder = tmp_path / scenario
    variables = environment(hub.endpoint, tmp_path / "home", HF_TOKEN="hf_writer")
    process = launch(scenario, folder, "--nproc_per_node=2", "--standalone", environment=variables)
    assert finish([process]) == [0], output(process)[-5000:]
    repository = f"tester/{scenario}"
    # One commit each, though two processes came to it.
    assert hub.titles(repository) == ["Training in progress, step 2", "End of training"]
    files = hub.files(repository)
    assert files["model.safetensors"] == (folder / "packed" / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["quantization_config"]["packed"] is True
    assert {"README.md", "modeling_vaq.py", "preprocessor_config.json", "training.yaml"} <= set(files)
    assert [entry["step"] for entry in json.loads(files["training_log.json"]) if "loss" in entry] == [1, 2]
    # The checkpoint is an ordinary model in training form, whole.
    assert json.loads(files["last-checkpoint/config.json"])["quantization_config"]["packed"] is False
    assert len(files["last-checkpoint/model.safetensors"]) > len(files["model.safetensors"])
    assert "last-checkpoint/rng_state_1.pth" in files
