"""The folder of a model beside which lies everything that a card can tell of.

    python tests/hub/card_helpers.py

writes the stored copy of its card anew, after a change that is meant.
"""

import json
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).parents[1]))

from helpers import build, images

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.hub import CardOptions, complete_model_folder

STORED_CARD = Path(__file__).parent / "stored_card.md"
OPTIONS = CardOptions(name="animals-w2a2", where="tester/animals-w2a2", license="apache-2.0", tags=["animals"])
RECIPE = {
    "model": "start/vit-tiny",
    "dataset": "pictures/of-animals",
    "weight_bits": 2,
    "activation_bits": 3,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 64,
    "learning_rate": 0.0005,
    "bin_regularization": 0.01,
    "seed": 7,
}
RESULTS = {
    "recipe": "animals",
    "bits": "W2A3",
    "seed": 7,
    "dataset": "pictures/of-animals",
    "split": "test",
    "full_precision": {"top1": 91.5, "top5": 100.0, "num_images": 200, "size_bytes": 98304},
    "quantized": {"top1": 90.0, "top5": 100.0, "num_images": 200, "size_bytes": 16384},
}
LOG = [{"loss": 1.25, "step": 10}, {"loss": 0.75, "oscillation_percentage": 2.5, "step": 20}]
EVALUATION = {
    "data": {
        "dataset": "zoo/photographs",
        "dataset_id": "zoo/photographs",
        "dataset_config": None,
        "dataset_revision": "0123abc",
        "split": "validation",
        "num_images": 500,
        "max_images": None,
    },
    "models": [
        {"model": "float", "form": "full precision", "top1": 80.0, "top5": 98.0, "size_bytes": 98304},
        {
            "model": "packed",
            "form": "W2A3, packed",
            "top1": 78.2,
            "top1_interval": [74.4, 81.8],
            "top5": 97.4,
            "top5_interval": [96.0, 98.6],
            "size_bytes": 16384,
        },
    ],
}
SPEED = {
    "machine": {"processor": "Example CPU", "threads": 4, "accelerator": None, "packages": {"torch": "2.15.0"}},
    "device": "cpu",
    "threads": 2,
    "execution": "integer (oneDNN)",
    "quiet": True,
    "speeds": {
        "8": {
            "float32": {"latency": {"median": 0.0205}, "speed_up": {"median": 1.0}},
            "eager": {"latency": {"median": 0.0082}, "speed_up": {"median": 2.5}},
            "compiled": {"latency": {"median": 0.0041}, "speed_up": {"median": 5.0}},
        }
    },
}


def write_full_folder(folder: Path) -> None:
    """A packed model, and every file that a card reads."""
    labels = {0: "cat", 1: "dog", 2: "fish"}
    model = build(id2label=labels, label2id={name: index for index, name in labels.items()})
    overrides = {"*.fc1": {"weight_bits": 3}}
    hf_vaq.quantize(model, QuantConfig(weight_bits=2, activation_bits=3, module_overrides=overrides))
    hf_vaq.calibrate(model, [images(8, seed=1)])
    hf_vaq.pack(model).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    for name, content in (
        ("results", RESULTS),
        ("training_log", LOG),
        ("benchmark", SPEED),
        ("evaluation/zoo", EVALUATION),
    ):
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    for name in ("figures/oscillation_shares.png", "figures/variation_weights.png", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"content")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write_full_folder(Path(name))
        complete_model_folder(Path(name), OPTIONS)
        text = (Path(name) / "README.md").read_text(encoding="utf-8")
    STORED_CARD.write_text(text, encoding="utf-8")
    print(STORED_CARD)
