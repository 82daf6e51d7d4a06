"""What a run measured, and the table that it ends with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..evaluation import EvaluationResult
from ..tables import format_table


@dataclass(frozen=True)
class ModelResult:
    """Accuracy, speed and size of one model: top-1 and top-5 in percent, size of its safetensors files in bytes."""

    top1: float
    top5: float
    num_images: int
    images_per_second: float
    size_bytes: int

    @classmethod
    def of(cls, evaluation: EvaluationResult, size_bytes: int) -> ModelResult:
        """Join what was measured on the images and on disk."""
        return cls(
            round(evaluation.top1, 4),
            round(evaluation.top5, 4),
            evaluation.num_images,
            round(evaluation.images_per_second, 2),
            size_bytes,
        )


@dataclass(frozen=True)
class RunResult:
    """What `results.json` of a run holds.

    Attributes:
        recipe: name of the recipe.
        bits: "W2A2" for two bits for weights and activations.
        seed: seed of the run.
        dataset, split: the images that were evaluated.
        full_precision, quantized: the two models; the quantized one packed, saved and loaded again.
        difference: top-1 of the quantized model minus that of full precision, in points.
        seconds: wall time by phase, and "total".
        versions: versions of the packages that matter.
    """

    recipe: str
    bits: str
    seed: int
    dataset: str
    split: str
    full_precision: ModelResult
    quantized: ModelResult
    difference: float
    seconds: dict[str, float]
    versions: dict[str, str]

    def to_dict(self) -> dict:
        """Return plain containers, for JSON."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Return the table for people."""
        rows = [["", "top-1", "top-5", "size on disk"]]
        for name, result in (("full precision", self.full_precision), (f"{self.bits}, packed", self.quantized)):
            rows.append([name, f"{result.top1:.2f} %", f"{result.top5:.2f} %", f"{result.size_bytes / 1000:,.1f} kB"])
        ratio = self.full_precision.size_bytes / self.quantized.size_bytes
        top5 = self.quantized.top5 - self.full_precision.top5
        rows.append(["difference", f"{self.difference:+.2f} points", f"{top5:+.2f} points", f"1 / {ratio:.1f}"])
        phases = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items() if name != "total")
        images = f"{self.quantized.num_images} images of {self.dataset}, split {self.split}, seed {self.seed}"
        return f"{format_table(rows)}\n{images}\n{self.seconds['total']:.1f} seconds ({phases})"
