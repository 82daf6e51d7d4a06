"""Top-1 and top-5 accuracy as a metric of the `evaluate` library, and the trainer's hooks for it."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

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
