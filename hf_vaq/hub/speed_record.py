"""The speed measurement beside a model: the JSON of `hf-vaq benchmark --output`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .records import Speed, read_json


@dataclass(frozen=True)
class SpeedRecord:
    """Lines of a speed measurement, and the machine in words."""

    machine: str
    rows: tuple[Speed, ...]


def read_speed(path: Path) -> SpeedRecord:
    """Read `benchmark.json`.

    It is a mapping with `machine` (what `hf_vaq.machine.machine()` returns) and `rows`, a list of mappings with `name`
    (what was timed), `batch_size` (images a forward pass), `milliseconds` (median of a forward pass) and `speed_up`
    (times as fast as the reference; null for the reference itself).

    Raises:
        ValueError: it is something else.
    """
    content = read_json(path)
    try:
        rows = tuple(
            Speed(str(row["name"]), int(row["batch_size"]), float(row["milliseconds"]), _number(row.get("speed_up")))
            for row in content["rows"]
        )
        return SpeedRecord(describe_machine(content["machine"]), rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path.name} is not what 'hf-vaq benchmark --output' writes: {type(error).__name__}: {error}. Expected"
            " machine, and rows with name, batch_size, milliseconds and speed_up."
        ) from error


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return a sentence about where something was measured."""
    where = machine.get("accelerator") or machine["processor"]
    threads = machine.get("threads")
    counted = "" if machine.get("accelerator") or threads is None else f", {threads} thread{'s'[: threads != 1]}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    return f"Measured on {where}{counted}{f' with {versions}' if versions else ''}."


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
