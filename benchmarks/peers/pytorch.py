"""PyTorch: float32, bfloat16, and the int8 paths of PyTorch and torchao."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from .contestant import Contestant, Logits, Task

FROZEN = {"freezing": True}
"""Inductor keeps the weights in the layouts that its kernels like best, as every inference runtime does."""


def float32_eager(task: Task) -> Contestant:
    return _contestant(task.model, task, size_bytes=_state_size(task.model))


def float32_compiled(task: Task) -> Contestant:
    return _contestant(torch.compile(task.copy()), task)


def float32_frozen(task: Task) -> Contestant:
    return _contestant(torch.compile(task.copy(), options=FROZEN), task, frozen=True)


def bfloat16_frozen(task: Task) -> Contestant:
    model = task.copy().to(torch.bfloat16)
    size = _state_size(model)
    return _contestant(torch.compile(model, options=FROZEN), task, torch.bfloat16, size_bytes=size, frozen=True)


def dynamic_int8(task: Task) -> Contestant:
    torch.backends.quantized.engine = "onednn"
    model = torch.ao.quantization.quantize_dynamic(task.copy(), {nn.Linear}, dtype=torch.qint8)
    return _contestant(model, task, size_bytes=_state_size(model))


def pt2e_static_int8(task: Task) -> Contestant:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    pixels = task.pixels()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        exported = torch.export.export(Logits(task.copy()), (pixels,)).module()
        prepared = prepare_pt2e(exported, quantizer)
        for seed in range(1, 4):
            prepared(task.pixels(seed=seed))
        converted = convert_pt2e(prepared)
    run = torch.compile(converted, options=FROZEN)
    return Contestant(_inference(lambda: run(pixels), frozen=True))


def torchao_dynamic_int8(task: Task) -> Contestant:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = task.copy()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    size = _state_size(model)
    return _contestant(torch.compile(model, options=FROZEN), task, size_bytes=size, frozen=True)


BUILDERS = {
    "float32 eager": float32_eager,
    "float32 compiled": float32_compiled,
    "float32 compiled, frozen": float32_frozen,
    "bfloat16 compiled, frozen": bfloat16_frozen,
    "PyTorch dynamic int8 (onednn)": dynamic_int8,
    "PT2E x86 static int8, frozen": pt2e_static_int8,
    "torchao dynamic int8, compiled": torchao_dynamic_int8,
}


def _contestant(
    model,
    task: Task,
    dtype: torch.dtype = torch.float32,
    size_bytes: int | None = None,
    frozen: bool = False,
) -> Contestant:
    pixels = task.pixels().to(dtype)
    return Contestant(_inference(lambda: model(pixel_values=pixels).logits, frozen), size_bytes)


def _inference(call, frozen: bool = False):
    """Run without gradients: Inductor freezes only then, and torchao's tensors do not bear `inference_mode`.

    Frozen: `freezing` must hold while Dynamo traces, which is during the first call. As an option of `torch.compile`
    alone it comes too late; but it is needed there too, or else the code of another model of this class is taken.
    """

    def run():
        with torch.no_grad():
            return call()

    if frozen:
        with torch._inductor.config.patch(freezing=True):
            run()
    return run


def _state_size(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(model.state_dict(), path)
        return path.stat().st_size
