"""The demo's modules, which are scripts beside the package, and a pair of models for them."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from helpers import build
from transformers import ViTImageProcessor

import hf_vaq
from hf_vaq.data import LabelledSplit, load_dataset

SPACE = Path(__file__).parents[2] / "examples" / "space"


def load_script(name: str) -> ModuleType:
    """Import a file of the demo as Python does for a script, with its folder on the path."""
    if name in sys.modules:
        return sys.modules[name]
    sys.path.insert(0, str(SPACE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SPACE))


def save_pair(folder: Path) -> tuple[str, str]:
    """Write a small float model for digits and the same packed, and return their folders."""
    labels = {index: str(index) for index in range(10)}
    numbers = {name: index for index, name in labels.items()}
    model = build(image_size=16, patch_size=4, num_labels=10, id2label=labels, label2id=numbers)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    images = held_out(8).evaluation_set(labels, processor)
    model.save_pretrained(folder / "float")
    model = hf_vaq.quantize(model, hf_vaq.QuantConfig(weight_bits=2, activation_bits=2))
    hf_vaq.calibrate(model, [{"pixel_values": images[index]["pixel_values"][None]} for index in range(8)])
    hf_vaq.pack(model).save_pretrained(folder / "packed")
    for name in ("float", "packed"):
        processor.save_pretrained(folder / name)
    return str(folder / "float"), str(folder / "packed")


def held_out(count: int) -> LabelledSplit:
    """The first held-out digits."""
    return LabelledSplit.select(load_dataset("digits"), f"test[:{count}]", "image", "label")
