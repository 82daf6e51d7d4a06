"""Classify pictures: python run.py PICTURE [PICTURE ...]

Prints, for each, its path, the best label and that label's probability. It reads the files beside it and needs numpy,
pillow and the runtime of the model (onnxruntime or openvino); no torch, no transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent


def read_settings() -> dict[str, Any]:
    """The content of export.json."""
    return json.loads((FOLDER / "export.json").read_text(encoding="utf-8"))


def load(settings: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixel values, float32 (batch, channels, height, width), to logits, (batch, labels)."""
    path = str(FOLDER / settings["file"])
    if settings["format"] == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda pixel_values: session.run(None, {settings["input"]["name"]: pixel_values})[0]
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", settings["compile"])
    return lambda pixel_values: compiled({settings["input"]["name"]: pixel_values})[0]


def preprocess(picture: Image.Image, steps: dict[str, Any]) -> np.ndarray:
    """From a PIL image to float32 (channels, height, width); `steps` is the entry "image" of the settings."""
    picture = picture.convert("RGB")
    if steps["resize"] is not None:
        picture = picture.resize(resized_shape(picture, steps["resize"]), resample=steps["resample"])
    if steps["crop"] is not None:
        width, height = steps["crop"]["width"], steps["crop"]["height"]
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        picture = picture.crop((left, top, left + width, top + height))
    values = np.asarray(picture, dtype=np.float32) * np.float32(steps["scale"])
    if steps["mean"] is not None:
        values = (values - np.asarray(steps["mean"], np.float32)) / np.asarray(steps["std"], np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def resized_shape(picture: Image.Image, size: dict[str, int]) -> tuple[int, int]:
    """Width and height: the stated ones, or those that give the shorter edge the stated length."""
    if "shortest_edge" not in size:
        return size["width"], size["height"]
    short, long = sorted(picture.size)
    edge = size["shortest_edge"]
    other = int(edge * long / short)
    return (edge, other) if picture.width <= picture.height else (other, edge)


def main(paths: list[str]) -> None:
    """Print one line a picture."""
    if not paths:
        sys.exit(__doc__)
    settings = read_settings()
    run = load(settings)
    logits = run(np.stack([preprocess(Image.open(path), settings["image"]) for path in paths]))
    for path, row in zip(paths, logits, strict=True):
        probabilities = np.exp(row - row.max())
        best = int(row.argmax())
        print(f"{path}\t{settings['labels'][best]}\t{probabilities[best] / probabilities.sum():.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
