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


_NAMES = {"eager": "packed, {execution}", "compiled": "packed, compiled", "onnx": "ONNX", "openvino": "OpenVINO"}


def read_speed(path: Path) -> SpeedRecord:
    """Read `benchmark.json`.

    It holds `machine` (what `hf_vaq.machine` says), `device`, `threads`, `execution` (how the packed model
    computes), `quiet` (whether other processes left the machine alone), and `speeds`: by batch size and way to run the
    model, `latency` in seconds and `speed_up` over eager float32, each with its `median`.

    Raises:
        ValueError: it is something else.
    """
    content = read_json(path)
    try:
        rows = tuple(
            Speed(
                name=_NAMES.get(name, name).format(execution=content["execution"]),
                batch_size=int(batch_size),
                milliseconds=1000 * float(speed["latency"]["median"]),
                speed_up=None if name == "float32" else float(speed["speed_up"]["median"]),
            )
            for batch_size, ways in content["speeds"].items()
            for name, speed in ways.items()
        )
        machine = describe_machine(content["machine"] | {"threads": content["threads"]})
        busy = "" if content["quiet"] else " Other processes kept the processor busy, so these times say little."
        return SpeedRecord(f"{machine} Medians; compared with eager float32.{busy}", rows)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path.name} is not what 'hf-vaq benchmark --output' writes: {type(error).__name__}: {error}."
        ) from error


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return a sentence about where something was measured."""
    where = machine.get("accelerator") or machine["processor"]
    threads = machine.get("threads")
    counted = "" if machine.get("accelerator") or threads is None else f", {threads} thread{'s'[: threads != 1]}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    return f"Measured on {where}{counted}{f' with {versions}' if versions else ''}."
