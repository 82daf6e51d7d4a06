"""Top-1 and top-5 accuracy and speed of any image-classification model: float, training form or packed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

TOP_K = 5


class TopKAccuracy(evaluate.Metric):
    """Top-1 and top-5 accuracy from ranked class indices, as an in-process metric of the `evaluate` library.

    `evaluate.load("accuracy")` fetches a script from the Hub; this one needs no network. Predictions are the class
    indices of each image from most to least likely, shape (images, at least 1); references are the true classes.
    `compute` returns the fractions `accuracy` and `top5_accuracy` (all classes count where there are fewer than five).
    """

    def __init__(self, **kwargs: Any):
        # Everything stays in memory: five integers an image need no cache file.
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of images whose class is the first, and is among the first five, of the ranking.",
            citation="",
            inputs_description="predictions: ranked class indices of each image; references: the true class indices.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {
            "accuracy": float(hits[:, 0].mean()),
            "top5_accuracy": float(hits[:, :TOP_K].any(axis=1).mean()),
        }


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate_model` measured.

    Attributes:
        top1: top-1 accuracy in percent.
        top5: top-5 accuracy in percent.
        num_images: how many images were classified.
        images_per_second: speed of the model's forward passes, without reading and decoding the images.
        seconds: time of the whole evaluation, with reading and decoding.
    """

    top1: float
    top5: float
    num_images: int
    images_per_second: float
    seconds: float


def ranked_classes(logits: torch.Tensor | tuple[torch.Tensor, ...], k: int = TOP_K) -> torch.Tensor:
    """Return the indices of the k largest logits, largest first: (images, classes) -> (images, min(k, classes)).

    Models with two heads (DeiT with distillation) return a tuple whose first entry is the combined prediction.
    """
    first = logits[0] if isinstance(logits, tuple) else logits
    return first.topk(min(k, first.shape[-1]), dim=-1).indices


def preprocess_logits_for_metrics(
    logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor
) -> torch.Tensor:
    """Keep the five best classes instead of all logits; the trainer's hook of the same name, for `compute_metrics`."""
    return ranked_classes(logits)


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Return `accuracy` and `top5_accuracy` (fractions) for the trainer, which adds the prefix `eval_`.

    Args:
        prediction: an `EvalPrediction` whose predictions are logits (images, classes), a tuple that starts with them,
            or the ranked class indices of `preprocess_logits_for_metrics`.
    """
    predictions = prediction.predictions
    predictions = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    if np.issubdtype(predictions.dtype, np.floating):
        predictions = ranked_classes(torch.from_numpy(predictions)).numpy()
    return TopKAccuracy().compute(predictions=predictions, references=prediction.label_ids)


@torch.inference_mode()
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
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; accepted: 1 and above.")
    if len(dataset) == 0:
        raise ValueError("The dataset to evaluate on is empty.")
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    device = torch.device(device)
    was_training = model.training
    model.eval().to(device)
    metric = TopKAccuracy()
    forward_seconds = 0.0
    started = time.perf_counter()
    try:
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
        for batch in tqdm(loader, desc=description, unit="batch", disable=not progress, leave=False):
            pixel_values = batch["pixel_values"].to(device)
            _synchronize(device)
            before = time.perf_counter()
            logits = model(pixel_values=pixel_values).logits
            _synchronize(device)
            forward_seconds += time.perf_counter() - before
            if not torch.isfinite(logits).all():
                raise ValueError("The model returned logits that are not finite (NaN or infinity).")
            metric.add_batch(predictions=ranked_classes(logits).cpu().numpy(), references=batch["labels"].numpy())
    finally:
        model.train(was_training)
    accuracy = metric.compute()
    return EvaluationResult(
        top1=100 * accuracy["accuracy"],
        top5=100 * accuracy["top5_accuracy"],
        num_images=len(dataset),
        images_per_second=len(dataset) / forward_seconds,
        seconds=time.perf_counter() - started,
    )


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, so that the clock measures the work and not its submission."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
