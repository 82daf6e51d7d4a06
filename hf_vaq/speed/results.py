"""What a benchmark measured, as numbers and as tables."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..tables import format_table
from .memory import MemoryUse
from .timing import Spread


@dataclass(frozen=True)
class Speed:
    """Of one way to run a model: seconds a call, speed-up over eager float32, images a second."""

    latency: Spread
    speed_up: Spread
    images_per_second: float


@dataclass(frozen=True)
class Cost:
    """Bytes of a model's files, and its memory (None where it was not or cannot be measured)."""

    size_bytes: int
    memory: MemoryUse | None


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark_model` measured.

    Attributes:
        model: folder or Hub id.
        form: "float", "training form" or "packed".
        execution: how the model computes, see `hf_vaq.inference`.
        float_model: what it is compared with.
        device, threads, runs: how it was measured.
        speeds: by batch size and way: "float32" (eager; the reference), "float32, compiled", "eager", "compiled",
            "onnx", "openvino".
        costs: of "float32", "model", and the exports.
        rejected_rounds: rounds that other processes disturbed and that were repeated.
        foreign_cores: most cores that other processes used during the kept rounds; None where unknown.
        quiet: False where the machine was too busy for any figure to mean much.
        notes: what was not measured, and why.
    """

    model: str
    form: str
    execution: str
    float_model: str
    device: str
    threads: int
    runs: int
    speeds: dict[int, dict[str, Speed]]
    costs: dict[str, Cost]
    rejected_rounds: int
    foreign_cores: float | None
    quiet: bool
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; seconds and bytes."""
        return dataclasses.asdict(self)

    def tables(self) -> str:
        """Return the tables for people."""
        parts = [format_table(self._speed_rows(size)) for size in self.speeds]
        parts.append(format_table(self._cost_rows()))
        where = f"{self.device}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [
            f"{self.model} computes: {self.execution}",
            f"compared with {self.float_model}, eager, on {where}; medians of {self.runs} interleaved rounds, with "
            "quartiles",
        ]
        if self.rejected_rounds:
            lines.append(f"{self.rejected_rounds} rounds were thrown away because other processes disturbed them")
        if not self.quiet:
            lines.append("other processes kept the processor busy all the time: these times say little")
        return "\n\n".join([*parts, "\n".join([*lines, *self.notes])])

    def _speed_rows(self, batch_size: int) -> list[list[str]]:
        rows = [[f"batch size {batch_size}", "latency", "quartiles", "images/s", "speed-up", "quartiles"]]
        for name, speed in self.speeds[batch_size].items():
            latency, ratio = speed.latency, speed.speed_up
            rows.append(
                [
                    name,
                    f"{1000 * latency.median:.2f} ms",
                    f"{1000 * latency.low:.2f} to {1000 * latency.high:.2f}",
                    f"{speed.images_per_second:.1f}",
                    f"{ratio.median:.2f} x",
                    f"{ratio.low:.2f} to {ratio.high:.2f}",
                ]
            )
        return rows

    def _cost_rows(self) -> list[list[str]]:
        reference = self.costs["float32"]
        sizes = list(self.speeds)
        with_memory = any(cost.memory for cost in self.costs.values())
        peaks = ["peak, loading", *(f"running {size}" for size in sizes)] if with_memory else []
        rows = [["size and memory", "on disk", "of float32", *peaks]]
        for name, cost in self.costs.items():
            row = [name, _megabytes(cost.size_bytes), f"1 / {reference.size_bytes / cost.size_bytes:.1f}"]
            if with_memory:
                memory = cost.memory
                row += ["-"] * len(peaks) if memory is None else [_megabytes(memory.loading)]
                if memory is not None:
                    row += [_megabytes(memory.running[size]) for size in sizes]
            rows.append(row)
        return rows


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
