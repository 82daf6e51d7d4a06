"""Modules whose output is read by one quantized layer only, and which can hand it codes instead of numbers.

A LayerNorm or GELU would write floating-point numbers that the next layer reads only to quantize them. One kernel does
both. Under `torch.compile` a LayerNorm is what it was: the compiler fuses it with the residual sum before it and the
quantization after it. A GELU stays a staircase, which takes fewer instructions than the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..numerics.levels import integer_range
from .layers import Engine
from .native import kernels, ops
from .staircase import Staircase


class CodedLayerNorm(nn.LayerNorm):
    """A LayerNorm that hands codes to its reader; made from a stock one by `emit_codes`, undone by `emit_numbers`.

    Its `reader` is a pair: the module that holds the quantizer's engine, and the quantizer.
    """

    reader: tuple[nn.Module, PackedActivationQuantizer]

    def forward(self, x: Tensor) -> Tensor:
        """Byte codes of the normalized `x` if its reader takes them and there is a kernel; else the numbers."""
        owner, quantizer = self.reader
        parameters = (self.weight, self.bias)
        if not _can_emit(x, owner, quantizer) or any(p is None or p.dtype is not torch.float32 for p in parameters):
            return super().forward(x)
        levels = integer_range(quantizer.bits, quantizer.signed)
        return ops.layer_norm_codes(x, self.weight, self.bias, self.eps, float(quantizer.scale), *levels)


class CodedActivation(nn.Module):
    """An activation function that hands codes to the layer that reads it.

    A b-bit quantizer after a scalar function is a staircase of few steps (`hf_vaq.inference.staircase`).

    Args:
        function: the stock activation function.
        reader: the packed layer that reads it.
    """

    breakpoints: Tensor | None
    codes: Tensor | None

    def __init__(self, function: nn.Module, reader: nn.Module):
        super().__init__()
        self.function = function
        self.reader = (reader, reader.input_quantizer)  # in a tuple: no submodules of this one
        self.reset()

    def reset(self) -> None:
        """Forget the staircase."""
        self.register_buffer("breakpoints", None, persistent=False)
        self.register_buffer("codes", None, persistent=False)
        self.ready, self.count = False, 0

    def _apply(self, fn: Callable, recurse: bool = True) -> CodedActivation:
        self.reset()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # Another process or machine may have no kernel.
        return {**self.__dict__, "_buffers": {"breakpoints": None, "codes": None}, "ready": False}

    @torch.compiler.disable(reason="the staircase is found once: use hf_vaq.inference.compile_model")
    def prepare(self) -> None:
        """Find the staircase, if there is a kernel for it."""
        self.ready = True
        owner, quantizer = self.reader
        if quantizer.scale.device.type != "cpu" or kernels() is None or not owner.engine.prepare(owner):
            return
        with torch.inference_mode(False), torch.no_grad():
            staircase = Staircase.of(self.function, quantizer)
            if staircase.fits():
                self.breakpoints, self.codes, self.count = staircase.padded()

    def forward(self, x: Tensor) -> Tensor:
        """Byte codes of the function of `x` if its reader takes them and there is a kernel; else the numbers."""
        if not self.ready:
            self.prepare()
        if self.breakpoints is None or x.dtype is not torch.float32:
            return self.function(x)
        step_codes = torch.ops.hf_vaq.step_codes if torch.compiler.is_compiling() else ops.step_codes
        return step_codes(x, self.breakpoints, self.codes, self.count)


def emit_codes(norm: nn.LayerNorm, owner: nn.Module, quantizer: PackedActivationQuantizer) -> None:
    """Turn a stock LayerNorm into one that hands codes to `quantizer`, in place; its parameters stay."""
    norm.__class__ = CodedLayerNorm
    norm.reader = (owner, quantizer)


def emit_numbers(norm: CodedLayerNorm) -> None:
    """Undo `emit_codes`."""
    norm.__class__ = nn.LayerNorm
    del norm.reader


def _can_emit(x: Tensor, owner: nn.Module, quantizer: PackedActivationQuantizer) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype is not torch.float32:
        return False
    engine = owner.engine
    if not isinstance(engine, Engine) or not x.is_contiguous() or quantizer.groups.count > 1:
        return False
    return kernels() is not None and engine.prepare(owner)
