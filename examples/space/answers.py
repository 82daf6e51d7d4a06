"""What the page shows: the answers of both models, how long they took, and how large the models are."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_vaq.data import as_rgb, check_input_format, evaluation_transform, load_digits
from hf_vaq.data.transforms import ImageTransform
from hf_vaq.evaluation.report import describe_execution, describe_form
from hf_vaq.job.models import load_image_processor, load_model, saved_size

RUNS = 5
"""Forward passes whose median is the latency."""
EXAMPLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Side:
    """One of the two models, with everything that is said about it.

    Attributes:
        name: folder or Hub id.
        model: in evaluation mode.
        transform: from an RGB image to the model's input, the one that `hf-vaq evaluate` uses.
        labels: names of the classes, all different.
        form: such as "W2A2, packed".
        size_bytes: of its weights on disk.
    """

    name: str
    model: PreTrainedModel
    transform: ImageTransform
    labels: list[str]
    form: str
    size_bytes: int

    @classmethod
    def load(cls, name: str) -> Side:
        """Load model and image processor, and run once, so that the first image does not pay for preparations.

        Raises:
            ValueError: there is no such model, or its image processor does not fit it.
        """
        model, processor = load_model(name), load_image_processor(name)
        check_input_format(processor, model.config)
        names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        labels = [label if names.count(label) == 1 else f"{label} ({index})" for index, label in enumerate(names)]
        side = cls(name, model, evaluation_transform(processor), labels, describe_form(model), saved_size(model))
        side.logits(side.pixel_values(Image.new("RGB", (8, 8))))
        return side

    def pixel_values(self, image: Image.Image) -> torch.Tensor:
        """Return the model's input, (1, 3, height, width)."""
        return self.transform(as_rgb(image))[None]

    @torch.inference_mode()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the logits of one image, (classes,)."""
        return self.model(pixel_values=pixel_values).logits[0]


@dataclass(frozen=True)
class Answer:
    """What a model says to an image: probability by label, most likely first, and its latency in milliseconds."""

    probabilities: dict[str, float]
    milliseconds: float

    @property
    def label(self) -> str:
        """The most likely class."""
        return next(iter(self.probabilities))


def answer(sides: Sequence[Side], image: Image.Image) -> list[Answer]:
    """Ask every model; the passes that are timed take turns, so that all meet the same machine."""
    inputs = [side.pixel_values(image) for side in sides]
    logits = [side.logits(pixels) for side, pixels in zip(sides, inputs, strict=True)]
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(RUNS):
        for side, pixels, taken in zip(sides, inputs, times, strict=True):
            before = time.perf_counter()
            side.logits(pixels)
            taken.append(1000 * (time.perf_counter() - before))
    answers = []
    for side, values, taken in zip(sides, logits, times, strict=True):
        shares, order = values.float().softmax(0).sort(descending=True)
        named = {side.labels[index]: share for index, share in zip(order.tolist(), shares.tolist(), strict=True)}
        answers.append(Answer(named, statistics.median(taken)))
    return answers


def facts(side: Side, answer: Answer) -> str:
    """Return the lines under an answer."""
    return (
        f"{describe_execution(side.model)}\n\n"
        f"**{side.size_bytes / 1000:,.1f} kB** of weights, **{answer.milliseconds:.2f} ms** for this image"
    )


def comparison(sides: Sequence[Side], answers: Sequence[Answer]) -> str:
    """Return the sentence under both answers."""
    agree = "Both give the same answer." if answers[0].label == answers[1].label else "The answers differ."
    size = sides[0].size_bytes / sides[1].size_bytes
    time_ratio = answers[1].milliseconds / answers[0].milliseconds
    threads = torch.get_num_threads()
    return (
        f"{agree} The packed weights take 1 / {size:.1f} of the space of the others; one image takes {time_ratio:.2f}"
        f" times as long (median of {RUNS} passes, one image at a time, {threads} thread{'s' * (threads > 1)})."
    )


def example_images(folder: Path | None, labels: Sequence[str]) -> list[str]:
    """Return files to choose from: those of a folder, or held-out digits for a model that reads digits.

    Raises:
        ValueError: the folder does not exist or holds no image.
    """
    if folder is not None:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [str(file) for file in files if file.suffix.lower() in EXAMPLE_SUFFIXES]
        if not found:
            raise ValueError(f"examples is {str(folder)!r}; accepted: a folder with {', '.join(EXAMPLE_SUFFIXES)}.")
        return found
    if sorted(labels) != [str(digit) for digit in range(10)]:
        return []
    target = Path(tempfile.mkdtemp(prefix="hf-vaq-digits-"))
    held_out = load_digits()["test"]
    labels_of = held_out["label"][:]
    paths = []
    for digit in range(10):
        path = target / f"{digit}.png"
        # As small as the model saw them: enlarging is the image processor's business.
        held_out[labels_of.index(digit)]["image"].save(path)
        paths.append(str(path))
    return paths


def load_sides(float_model: str, packed_model: str) -> list[Side]:
    """Load both models, full precision first.

    Raises:
        ValueError: a model cannot be loaded, or they have different classes.
    """
    sides = [Side.load(float_model), Side.load(packed_model)]
    if set(sides[0].labels) != set(sides[1].labels):
        raise ValueError(
            f"{float_model!r} and {packed_model!r} have different classes; accepted: two models of the same task."
        )
    return sides
