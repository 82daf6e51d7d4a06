"""All ways to run one model on a CPU, one module a runtime: `OURS` run a packed model, `PEERS` the float model."""

from __future__ import annotations

from . import onnx_runtime, openvino_runtime, ours, pytorch
from .contestant import Builder, Contestant, Task

PEERS: dict[str, Builder] = {**pytorch.BUILDERS, **onnx_runtime.BUILDERS, **openvino_runtime.BUILDERS}
OURS: dict[str, Builder] = ours.BUILDERS

__all__ = ["OURS", "PEERS", "Builder", "Contestant", "Task"]
