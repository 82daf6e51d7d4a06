"""Classify images with one model or with several side by side: float, training form or packed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..machine import choose_device
from .metrics import TOP_K, TopKAccuracy, ranked_classes


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured of one model.

    Attributes:
        top1: top-1 accuracy in percent.
        top5: top-5 accuracy in percent.
        num_images: how many images were classified.
        images_per_second: speed of the model's forward passes, without reading and decoding the images, and without
            the first of several batches, in which some models prepare themselves.
        seconds: time of the whole evaluation, with reading and decoding (and with the other models).
        ranks: place of the true class of each image, 0 for the most likely one; TOP_K stands for every place after
            the first TOP_K. Shape (images,), int8.
        classes: the model's classes that occur among the true ones, ascending.
    """

    top1: float
    top5: float
    num_images: int
    images_per_second: float
    seconds: float
    ranks: np.ndarray = field(repr=False, compare=False)
    classes: np.ndarray = field(repr=False, compare=False)


def evaluate_model(
    model: torch.nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    num_workers: int = 0,
    progress: bool = False,
    description: str = "evaluating",
) -> EvaluationResult:
    """Classify every image of `dataset` once and return accuracy and speed.

    The model is put into evaluation mode and moved to `device` (None: an accelerator where there is one, otherwise the
    CPU); its mode is restored afterwards.

    Args:
        model: an image-classification model of transformers; float, quantized in training form, or packed.
        dataset: items `{"pixel_values": (channels, height, width), "labels": int}`, see `ImageClassificationDataset`.
        batch_size: images a forward pass.
        num_workers: processes that read images; 0 reads in this one.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: `batch_size` below 1, an empty dataset, or a model that returns no finite logits.
    """
    loader = _loader(dataset, batch_size, num_workers)
    batches = ((batch,) for batch in _with_progress(loader, progress, description, None))
    return _measure([model], batches, device)[0]


def evaluate_side_by_side(
    models: Sequence[torch.nn.Module],
    dataset: Dataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    num_workers: int = 0,
    progress: bool = False,
    description: str = "evaluating",
    num_images: int | None = None,
) -> list[EvaluationResult]:
    """Classify every image with every model, batch by batch in turn, and return a result a model, in their order.

    Each image is read once, so a stream is read once, and the speeds are measured interleaved. All models are in
    memory at the same time; of the images only the batch at hand is (and what workers read ahead).

    Args:
        models: as in `evaluate_model`.
        dataset: items with one `{"pixel_values", "labels"}` a model, see `hf_vaq.data.SideBySideImages`.
        num_images: how many images a stream has, for the progress bar.

    Raises:
        ValueError: as in `evaluate_model`.
    """
    loader = _loader(dataset, batch_size, num_workers)
    total = None if num_images is None else -(-num_images // batch_size)
    return _measure(models, _with_progress(loader, progress, description, total), device)


class _Tally:
    """The running account of one model."""

    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.model, self.device = model, device
        self.metric = TopKAccuracy()
        self.seconds: list[float] = []
        self.ranks: list[np.ndarray] = []
        self.classes: set[int] = set()

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        pixel_values = batch["pixel_values"].to(self.device)
        _synchronize(self.device)
        before = time.perf_counter()
        logits = self.model(pixel_values=pixel_values).logits
        _synchronize(self.device)
        self.seconds.append(time.perf_counter() - before)
        if not torch.isfinite(logits).all():
            raise ValueError("The model returned logits that are not finite (NaN or infinity).")
        ranked, labels = ranked_classes(logits).cpu().numpy(), batch["labels"].numpy()
        self.metric.add_batch(predictions=ranked, references=labels)
        hits = ranked == labels[:, None]
        self.ranks.append(np.where(hits.any(axis=1), hits.argmax(axis=1), TOP_K).astype(np.int8))
        self.classes.update(labels.tolist())

    def result(self, seconds: float) -> EvaluationResult:
        accuracy, ranks = self.metric.compute(), np.concatenate(self.ranks)
        timed = slice(1, None) if len(self.seconds) > 1 else slice(None)
        return EvaluationResult(
            top1=100 * accuracy["accuracy"],
            top5=100 * accuracy["top5_accuracy"],
            num_images=len(ranks),
            images_per_second=sum(map(len, self.ranks[timed])) / sum(self.seconds[timed]),
            seconds=seconds,
            ranks=ranks,
            classes=np.asarray(sorted(self.classes)),
        )


@torch.inference_mode()
def _measure(
    models: Sequence[torch.nn.Module], batches: Iterable[Sequence[Any]], device: str | torch.device | None
) -> list[EvaluationResult]:
    device = choose_device(device)
    modes = [model.training for model in models]
    tallies = [_Tally(model.eval().to(device), device) for model in models]
    started = time.perf_counter()
    try:
        for batch in batches:
            for tally, inputs in zip(tallies, batch, strict=True):
                tally.add(inputs)
    finally:
        for model, was_training in zip(models, modes, strict=True):
            model.train(was_training)
    if not tallies[0].ranks:
        raise ValueError(_EMPTY)
    seconds = time.perf_counter() - started
    return [tally.result(seconds) for tally in tallies]


_EMPTY = "The dataset to evaluate on is empty."


def _loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; accepted: 1 and above.")
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(_EMPTY)
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)


def _with_progress(loader: DataLoader, progress: bool, description: str, total: int | None) -> Iterable[Any]:
    return tqdm(loader, desc=description, unit="batch", total=total, disable=not progress, leave=False)


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, so that the clock measures the work and not its submission."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
