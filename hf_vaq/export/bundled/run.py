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
from PIL import Image, ImageOps

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
    picture = as_rgb(picture)
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


def as_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, 8 bits a channel, turned as its EXIF orientation says.

    Palettes, grey, CMYK and transparency (which is dropped) become what Pillow makes of them. Grey levels of more than
    8 bits, which Pillow would cut off at 255, keep their order: those of 16 bits are divided by 257, so that black and
    white stay what they are, and floating-point ones from 0 to 1 multiplied by 255. Levels in 32-bit integers are
    8-bit ones where none is above 255, and 16-bit ones otherwise.

    Raises:
        ValueError: grey levels of another range.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.float64)
        low, high = levels.min(), levels.max()
        accepted = 1 if picture.mode == "F" else 65535
        if not (low >= 0 and high <= accepted):  # NaN is neither
            raise ValueError(
                f"its grey levels (mode {picture.mode}) go from {low:g} to {high:g}; accepted: 0 to {accepted}."
            )
        scale = 255 if picture.mode == "F" else 1 if picture.mode == "I" and high <= 255 else 1 / 257
        picture = Image.fromarray(np.rint(levels * scale).astype(np.uint8))
    return picture.convert("RGB")


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
    pictures = []
    for path in paths:
        try:
            pictures.append(preprocess(Image.open(path), settings["image"]))
        except (OSError, SyntaxError, ValueError) as error:
            sys.exit(f"{path}: {error}")
    logits = load(settings)(np.stack(pictures))
    for path, row in zip(paths, logits, strict=True):
        probabilities = np.exp(row - row.max())
        best = int(row.argmax())
        print(f"{path}\t{settings['labels'][best]}\t{probabilities[best] / probabilities.sum():.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
