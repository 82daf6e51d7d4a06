"""The report of an evaluation: figures of each model with their intervals, a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..tables import bits_name, format_table
from .intervals import Interval, bootstrap_interval, check_bootstrap
from .measuring import EvaluationResult
from .metrics import TOP_K

_DIGITS = 4


@dataclass(frozen=True)
class BootstrapSettings:
    """How intervals are made, see `bootstrap_interval`."""

    confidence_level: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self):
        check_bootstrap(self.confidence_level, self.resamples, self.seed)

    def interval(self, outcomes: np.ndarray) -> Interval:
        """Return the interval of the mean of fractions or differences of fractions, in percent or points."""
        low, high = bootstrap_interval(
            outcomes, confidence_level=self.confidence_level, resamples=self.resamples, seed=self.seed
        )
        return Interval(round(100 * low, _DIGITS), round(100 * high, _DIGITS))


def describe_form(model: torch.nn.Module) -> str:
    """Return "full precision", or bits and form of a quantized model: "W2A2, training form", "W2A2, packed"."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return "full precision"
    form = "packed" if getattr(config, "packed", False) else "training form"
    bits = getattr(config, "weight_bits", None), getattr(config, "activation_bits", None)
    return f"{bits_name(*bits)}, {form}"


def describe_execution(model: torch.nn.Module) -> str:
    """Return how a model computes: what a packed model says itself, otherwise its type, such as "float32"."""
    return str(getattr(model, "execution", None) or str(model.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class EvaluatedModel:
    """One model of an evaluation.

    Attributes:
        name: folder or Hub id, as it was given.
        revision: commit of a model from the Hub, otherwise None.
        form: "full precision", "W2A2, training form" or "W2A2, packed".
        execution: how it computed, such as "float32"; packed models say it themselves.
        size_bytes: of its safetensors files.
        result: what was measured.
    """

    name: str
    revision: str | None
    form: str
    execution: str
    size_bytes: int
    result: EvaluationResult

    @classmethod
    def of(
        cls,
        name: str,
        model: torch.nn.Module,
        size_bytes: int,
        result: EvaluationResult,
        revision: str | None = None,
    ) -> EvaluatedModel:
        """Describe a model that was evaluated."""
        return cls(name, revision, describe_form(model), describe_execution(model), size_bytes, result)

    def hits(self, k: int) -> np.ndarray:
        """Return 1 for every image whose true class is among the first k, otherwise 0; (images,), int8."""
        return (self.result.ranks < k).astype(np.int8)


@dataclass(frozen=True)
class EvaluationReport:
    """Models that were evaluated on the same images.

    Attributes:
        models: the first one is what the others are compared with.
        data: which images: "dataset", "split" and whatever else is needed to find them again.
        settings: how it was computed: "device", "batch_size", ...
        bootstrap: how the intervals are made.
    """

    models: Sequence[EvaluatedModel]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    bootstrap: BootstrapSettings

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; accuracies in percent, differences in points."""
        result = self.models[0].result
        return {
            "data": {**self.data, "num_images": result.num_images, "num_classes": len(result.classes)},
            "settings": dict(self.settings),
            "bootstrap": {"method": "percentile, paired", **vars(self.bootstrap)},
            "models": [self._figures(index) for index in range(len(self.models))],
        }

    def _figures(self, index: int) -> dict[str, Any]:
        model = self.models[index]
        figures: dict[str, Any] = {"model": model.name, "revision": model.revision, "form": model.form}
        for key, k in (("top1", 1), ("top5", TOP_K)):
            figures[key] = round(getattr(model.result, key), _DIGITS)
            figures[f"{key}_interval"] = list(self.bootstrap.interval(model.hits(k)))
        figures |= {
            "images_per_second": round(model.result.images_per_second, 2),
            "size_bytes": model.size_bytes,
            "execution": model.execution,
        }
        if index > 0:
            first = self.models[0]
            difference: dict[str, Any] = {"to": first.name}
            for key, k in (("top1", 1), ("top5", TOP_K)):
                points = getattr(model.result, key) - getattr(first.result, key)
                difference[key] = round(points, _DIGITS)
                difference[f"{key}_interval"] = list(self.bootstrap.interval(model.hits(k) - first.hits(k)))
            figures["difference"] = difference
        return figures

    def table(self) -> str:
        """Return the table for people."""
        content = self.to_dict()
        interval = f"{100 * self.bootstrap.confidence_level:g} % interval"
        several = len(self.models) > 1
        compared = ["difference", interval] if several else []
        rows = [["", "top-1", interval, "top-5", *compared, "images/s", "size on disk", "form", "execution"]]
        for model in content["models"]:
            if several:
                difference = model.get("difference")
                compared = ["", ""]
                if difference:
                    compared = [f"{difference['top1']:+.2f}", _range(difference["top1_interval"], "+.2f")]
            rows.append(
                [
                    model["model"],
                    f"{model['top1']:.2f} %",
                    _range(model["top1_interval"], ".2f"),
                    f"{model['top5']:.2f} %",
                    *compared,
                    f"{model['images_per_second']:.1f}",
                    f"{model['size_bytes'] / 1000:,.1f} kB",
                    model["form"],
                    model["execution"],
                ]
            )
        data, notes = content["data"], []
        known = len(self.models[0].result.classes)
        notes.append(f"{data['num_images']} images of {data['dataset']}, split {data['split']}, of {known} classes")
        if several:
            notes.append(f"difference: points of top-1 to {self.models[0].name}, on the same images")
        return "\n".join([format_table(rows), *notes])


def _range(interval: Sequence[float], number: str) -> str:
    return " to ".join(format(end, number) for end in interval)
