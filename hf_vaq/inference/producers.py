"""Modules whose output is read by one quantized layer only, and which can hand it codes instead of numbers.

A LayerNorm or GELU would write floating-point numbers that the next layer reads only to quantize them. One kernel does
both. Under `torch.compile` a LayerNorm is what it was: the compiler fuses it with the residual sum before it and the
quantization after it. A GELU stays a staircase, which takes fewer instructions than the function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..numerics.levels import integer_range
from .derived import Derived
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
        codes = ops.layer_norm_codes(x, self.weight, self.bias, self.eps, float(quantizer.scale), *levels)
        return super().forward(x) if codes is None else codes


class CodedActivation(Derived):
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

    def reset(self) -> None:
        """Forget the staircase."""
        super().reset()
        self.register_buffer("breakpoints", None, persistent=False)
        self.register_buffer("codes", None, persistent=False)
        self.count = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_buffers": {"breakpoints": None, "codes": None}}

    def sources(self) -> tuple[nn.Module, ...]:
        """The quantizer of the values."""
        return self.reader[1:]

    def derive(self) -> None:
        """Find the staircase, if there is a kernel for it."""
        owner, quantizer = self.reader
        self.breakpoints = None
        if quantizer.scale.device.type != "cpu" or kernels() is None or not owner.engine.is_ready(owner):
            return
        staircase = Staircase.of(self.function, quantizer)
        if staircase.fits():
            self.breakpoints, self.codes, self.count = staircase.padded()

    def forward(self, x: Tensor) -> Tensor:
        """Byte codes of the function of `x` if its reader takes them and there is a kernel; else the numbers."""
        if torch.compiler.is_exporting():
            return self.function(x)
        self.prepare()
        if self.breakpoints is None or x.dtype is not torch.float32:
            return self.function(x)
        step_codes = torch.ops.hf_vaq.step_codes if torch.compiler.is_compiling() else ops.step_codes
        codes = step_codes(x, self.breakpoints, self.codes, self.count)
        return self.function(x) if codes is None else codes


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
    return kernels() is not None and engine.is_ready(owner)
