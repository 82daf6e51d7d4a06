"""Where the time of the integer engine goes, and how much faster it could become.

Shares come from the profiler of PyTorch: of the time that the main thread spends in operators and kernels, by kind.
A compiled kernel does several things at once; it counts for the most expensive kind in its name, so "LayerNorm" holds
the residual addition before and the quantization after it, and "softmax" the quantization of the probabilities.
"""

from __future__ import annotations

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
from hf_vaq.nn import PackedWeight

RUNS = 10
KINDS = {
    "Linear layers": r"qlinear|_int_mm|addmm|linear|mkldnn",
    "attention as one kernel (products, softmax, quantization)": r"hf_vaq::attention",
    "attention products": r"bmm|baddbmm|matmul|^aten::mm$|scaled_dot_product",
    "softmax, with quantization": r"softmax|amax.*exp|exp.*sum",
    "LayerNorm, with addition and quantization": r"layer_norm|var_mean|rsqrt|_welford",
    "GELU, with quantization": r"gelu|erf|tanh",
    "patch convolution": r"conv",
    "quantization alone": r"step_codes|round|clamp|clip|quantize",
    "copies and layout": r"copy|clone|contiguous|_to_copy|cat|permute|transpose|reshape|view|empty|index",
}
"""Kind by the first pattern that an operator or kernel has in its name; everything else is "other"."""


def profile_engine(task: Task, bits: int = 4) -> dict[str, Any]:
    """Profile the packed model eager and compiled.

    Returns:
        Of each: milliseconds a call, shares by kind, largest kernels, and `limits`: the speed-up over float32 eager of
        this process if the Linear layers cost nothing, if everything else cost nothing, and as it is.
        `memory_floor_ms` is the time that reading every weight and moving every input and output of the packed layers
        once takes at the
        bandwidth of a large copy.
    """
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
    """The kind of work that an operator or a compiled kernel does, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


@torch.inference_mode()
def _profile(run, pixels: torch.Tensor, float_seconds: float) -> dict[str, Any]:
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        for _ in range(3):
            run(pixel_values=pixels)
        seconds = _seconds(run, pixels)
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(RUNS):
                run(pixel_values=pixels)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        times[event.key] = times.get(event.key, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    shares: dict[str, float] = {}
    for name, value in times.items():
        kind = kind_of(name)
        shares[kind] = shares.get(kind, 0.0) + value / total
    linear = shares.get("Linear layers", 0.0)
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return {
        "ms": round(1000 * seconds, 3),
        "shares": {kind: round(share, 4) for kind, share in sorted(shares.items(), key=lambda item: -item[1])},
        "largest": {name: round(value / total, 4) for name, value in ordered[:12]},
        "limits": {
            "as_it_is": round(float_seconds / seconds, 3),
            "linear_layers_free": round(float_seconds / (seconds * (1 - linear)), 3),
            "all_but_linear_layers_free": round(float_seconds / (seconds * linear), 3) if linear else None,
        },
    }


@torch.inference_mode()
def _seconds(run, pixels: torch.Tensor) -> float:
    times = []
    for turn in range(3 + RUNS):
        before = time.perf_counter()
        run(pixel_values=pixels)
        if turn >= 3:
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
