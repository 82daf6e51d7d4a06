"""A Hub on the loopback, a client of it, and models to publish."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from helpers import IMAGE_SIZE, build, images
from hub_client_helpers import Client, environment
from hub_server_helpers import Hub, serve
from transformers import ViTImageProcessor

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.inference import set_execution

LABELS = {0: "cat", 1: "dog", 2: "fish"}
RECIPE = {
    "model": "start/vit-tiny",
    "dataset": "pictures/of-animals",
    "weight_bits": 2,
    "activation_bits": 2,
    "num_train_epochs": 3.0,
    "learning_rate": 0.0005,
    "seed": 7,
    "output_dir": "outputs/animals",
    "hub_token": "hf_secret",
}
RESULTS = {
    "recipe": "animals",
    "bits": "W2A2",
    "seed": 7,
    "dataset": "pictures/of-animals",
    "split": "test",
    "full_precision": {
        "top1": 91.5,
        "top5": 100.0,
        "num_images": 200,
        "images_per_second": 900.0,
        "size_bytes": 98304,
    },
    "quantized": {"top1": 90.0, "top5": 100.0, "num_images": 200, "images_per_second": 800.0, "size_bytes": 16384},
    "difference": -1.5,
    "seconds": {"total": 12.5},
    "versions": {"hf_vaq": hf_vaq.__version__},
}
LOG = [{"loss": 1.25, "distillation_loss": 1.0, "step": 10}, {"loss": 0.75, "distillation_loss": 0.5, "step": 20}]


@dataclass
class Models:
    """Folders of one model: the output folder of a run with it, in training form, packed; and what it answers."""

    run: Path
    trained: Path
    packed: Path
    logits: torch.Tensor


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    """A tiny model in the form of a finished run."""
    run = tmp_path_factory.mktemp("runs") / "animals"
    model = build(id2label=LABELS, label2id={name: index for index, name in LABELS.items()})
    hf_vaq.quantize(model, QuantConfig(weight_bits=2, activation_bits=2))
    hf_vaq.calibrate(model, [images(8, seed=1)])
    packed = hf_vaq.pack(model)
    processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    for form, name in ((model, "trained"), (packed, "packed")):
        form.save_pretrained(run / name)
        processor.save_pretrained(run / name)
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (run / "results.json").write_text(json.dumps(RESULTS))
    (run / "training_log.json").write_text(json.dumps(LOG))
    set_execution(packed, "simulation")
    with torch.no_grad():
        logits = packed(pixel_values=images()).logits
    return Models(run, run / "trained", run / "packed", logits)


@pytest.fixture
def run_copy(models, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(models.run, tmp_path / "animals")


@pytest.fixture(scope="session")
def hub() -> Hub:
    """The state of a Hub on the loopback."""
    server = serve()
    yield server.hub
    server.shutdown()


@pytest.fixture
def failing_hub(hub) -> Hub:
    """The Hub, for failures that end with the test."""
    yield hub
    hub.failures.clear()


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory) -> Client:
    """A process that has imported hf_vaq and speaks to this Hub."""
    client = Client(environment(hub.endpoint, tmp_path_factory.mktemp("home")))
    yield client
    client.close()
