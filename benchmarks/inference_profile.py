"""Where the time of the integer engine goes, and how much faster it could become.

The kernel of a whole layer is built with clocks in it (the macro VAQ_CLOCKS): they count the first thread. What is
outside of the layers is divided by the profiler of PyTorch, operator by operator; the rest is Python and waiting.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from typing import Any

import torch
from peers import Task
from peers.ours import load
from torch import nn
from torch.profiler import ProfilerActivity

from hf_vaq.inference import compile_model
from hf_vaq.inference.native import kernels, loading
from hf_vaq.nn import PackedWeight

WARM_UP, RUNS = 5, 20
# In the order of `Work` in codes.h, after the layer as a whole.
PARTS = (
    "layers: Linear, with GELU, quantization and residual sum",
    "layers: attention products",
    "layers: softmax, with quantization",
    "layers: LayerNorm, with quantization",
    "layers: keys and values laid out",
)
LINEAR = PARTS[0]
WAITING = "layers: calls, waiting for the other thread"
KINDS = {
    "outside: Linear and patch products": r"qlinear|_int_mm|addmm|linear|mkldnn|conv",
    "outside: LayerNorm": r"layer_norm|var_mean|rsqrt|_welford",
    "outside: copies, concatenations, quantization": r"",
}
"""What operators outside of the layers are, by the first pattern that their name has."""
PYTHON = "outside: Python, calls"


def profile_engine(task: Task, bits: int = 4) -> dict[str, Any]:
    """Profile the packed model eager and compiled.

    Returns:
        Of each: milliseconds a call, shares of them by kind, and `limits`: the speed-up over float32 eager of this
        process if the products of the layers cost nothing, if everything else cost nothing, and as it is.
        `memory_floor_ms` is the time that reading every weight and moving every input and output of the packed layers
        once takes at the bandwidth of a large copy.

    Raises:
        RuntimeError: if there are no kernels on this machine.
    """
    loading.FLAGS = (*loading.FLAGS, "-DVAQ_CLOCKS")
    if kernels() is None:
        raise RuntimeError("the profile looks into the kernels: it needs AVX-512 VNNI and a C++ compiler.")
    model = load(task, bits)
    pixels = task.pixels()
    float_seconds = _seconds(task.model, pixels)
    floor = _memory_floor(model, pixels)
    measured: dict[str, Any] = {"bits": bits, "float32_eager_ms": round(1000 * float_seconds, 3)}
    measured["memory_floor_ms"] = round(1000 * floor, 3)
    for name, run in (("eager", model), ("compiled", compile_model(load(task, bits)))):
        measured[name] = _profile(run, pixels, float_seconds)
    return measured


def kind_of(name: str) -> str:
    """The kind of work that an operator outside of the layers does, by its name."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))


@torch.inference_mode()
def _profile(run, pixels: torch.Tensor, float_seconds: float) -> dict[str, Any]:
    _seconds(run, pixels)
    _clocks()
    seconds = _seconds(run, pixels)
    layer, *inside = (counted / (WARM_UP + RUNS) for counted in _clocks())
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(RUNS):
            run(pixel_values=pixels)
    parts = dict(zip(PARTS, inside, strict=True))
    parts[WAITING] = layer - sum(inside)
    for event in profiler.key_averages():
        if event.key != "hf_vaq::layer":
            kind = kind_of(event.key)
            parts[kind] = parts.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / RUNS
    parts[PYTHON] = max(0.0, seconds - sum(parts.values()))
    shares = {kind: value / sum(parts.values()) for kind, value in parts.items()}
    return {
        "ms": round(1000 * seconds, 3),
        "shares": {kind: round(share, 4) for kind, share in sorted(shares.items(), key=lambda item: -item[1])},
        "limits": {
            "as_it_is": round(float_seconds / seconds, 3),
            "linear_layers_free": round(float_seconds / (seconds * (1 - shares[LINEAR])), 3),
            "all_but_linear_layers_free": round(float_seconds / (seconds * shares[LINEAR]), 3),
        },
    }


def _clocks() -> list[float]:
    """Seconds that the clocks in the kernels counted since the last call: of the layers as a whole, and of `PARTS`."""
    counted = (ctypes.c_double * (1 + len(PARTS)))()
    kernels().vaq_clocks(counted)
    return list(counted)


@torch.inference_mode()
def _seconds(run, pixels: torch.Tensor) -> float:
    times = []
    for turn in range(WARM_UP + RUNS):
        before = time.perf_counter()
        run(pixel_values=pixels)
        if turn >= WARM_UP:
            times.append(time.perf_counter() - before)
    return statistics.median(times)


@torch.inference_mode()
def _memory_floor(model: nn.Module, pixels: torch.Tensor) -> float:
    """Seconds to move int8 weights, uint8 inputs and float32 outputs of every packed layer once."""
    moved = 0

    def count(layer: PackedWeight, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        moved += layer.shape.numel() + inputs[0].numel() + 4 * output.numel()

    layers = [module for module in model.modules() if isinstance(module, PackedWeight)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model(pixel_values=pixels)
    for handle in handles:
        handle.remove()
    return moved / _bandwidth()


def _bandwidth() -> float:
    """Bytes a second that a copy of 256 MB reads and writes."""
    source = torch.zeros(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = []
    for _ in range(6):
        before = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - before)
    return 2 * source.numel() / statistics.median(times[1:])
