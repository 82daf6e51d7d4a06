"""From the JSON of an evaluation to the metadata that the Hub reads in a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult

TASK = "image-classification"
_METRICS = (("top1", "accuracy", "Top-1 accuracy"), ("top5", "top_5_accuracy", "Top-5 accuracy"))


def eval_results(evaluation: Mapping[str, Any], model: str | None = None) -> list[EvalResult]:
    """Return the accuracies of one model as entries of a card's `model-index`.

    Values are fractions, as the metrics of `evaluate` have them. Their fields are those of `evaluate.push_to_hub`, and
    `huggingface_hub.ModelCardData(eval_results=...)` takes them as they are. A path of this machine does not get into
    them: of a local data set only its name does.

    Args:
        evaluation: what `hf-vaq evaluate --output` wrote, see `EvaluationReport.to_dict`.
        model: name of the model, as it was evaluated; may be left out where there was only one.

    Raises:
        ValueError: no such model, or several and none is named.
    """
    figures = {entry["model"]: entry for entry in evaluation["models"]}
    if model is None and len(figures) == 1:
        (model,) = figures
    if model not in figures:
        raise ValueError(f"model is {model!r}; accepted: a model of the evaluation: {', '.join(figures)}.")
    data = evaluation["data"]
    public = data["dataset_id"] or PurePath(data["dataset"]).name
    arguments = {name: data[name] for name in ("max_images", "seed") if data["max_images"] is not None}
    return accuracy_results(
        figures[model],
        dataset_type=public,
        dataset_name=public,
        dataset_config=data["dataset_config"],
        dataset_split=data["split"],
        dataset_revision=data["dataset_revision"],
        dataset_args=arguments or None,
    )


def accuracy_results(percent: Mapping[str, float], **dataset: Any) -> list[EvalResult]:
    """Return top-1 and top-5 of one model on one set of images as entries of a card's `model-index`.

    Args:
        percent: "top1" and "top5", in percent.
        **dataset: which images: the fields of `EvalResult` whose names begin with `dataset_`.
    """
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image Classification",
            metric_type=metric,
            metric_name=name,
            metric_value=round(percent[key] / 100, 6),
            **dataset,
        )
        for key, metric, name in _METRICS
    ]
