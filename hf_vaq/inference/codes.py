"""Activation codes as bytes.

A code c of a quantizer with the range Qn..Qp travels as the unsigned byte c - Qn, whatever the bit-width, so zero is
the byte -Qn (the zero point). Queries, keys and values, which come out of a matrix product, are centered instead: the
byte c + 128, whose codes may still lie outside Qn..Qp; who reads them clamps them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn import PackedActivationQuantizer
from ..numerics.fake_quantize import quantize_to_codes
from ..numerics.levels import integer_range
from .native import kernels, ops

CENTER = 128
"""The byte of code zero in centered bytes."""


def zero_point(quantizer: PackedActivationQuantizer) -> int:
    """The byte that stands for code zero."""
    return -integer_range(quantizer.bits, quantizer.signed)[0]


def integer_codes(quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
    """Codes Qn..Qp of `x` as float32 numbers, by the very operations of the float simulation; shape of `x`."""
    offset = None if quantizer.offset is None else quantizer.groups.expand(quantizer.offset, x.shape)
    scale = quantizer.groups.expand(quantizer.scale, x.shape)
    return quantize_to_codes(x, scale, quantizer.bits, signed=quantizer.signed, offset=offset)


def has_nan(*tensors: Tensor) -> bool:
    """Whether one of these, numbers or codes, holds NaN, as far as that can be told without waiting for a device."""
    return not torch.compiler.is_compiling() and any(
        x.device.type == "cpu" and x.is_floating_point() and bool(x.isnan().any()) for x in tensors
    )


def byte_codes(quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor | None:
    """Codes of `x` as bytes, uint8; shape of `x`. None if there is NaN in it, for which there is no code."""
    if (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and quantizer.groups.count == 1
        and x.is_contiguous()
        and kernels() is not None
    ):
        offset = None if quantizer.offset is None else float(quantizer.offset)
        levels = integer_range(quantizer.bits, quantizer.signed)
        return ops.quantize(x, float(quantizer.scale), offset, *levels)
    return None if has_nan(x) else (integer_codes(quantizer, x) + zero_point(quantizer)).to(torch.uint8)


def centered_bytes(quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
    """Codes of `x` as centered bytes; bytes are such already."""
    return x if x.dtype is torch.uint8 else (integer_codes(quantizer, x) + CENTER).to(torch.uint8)


def from_centered(quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
    """Codes Qn..Qp as float32 numbers, from centered bytes or from the values themselves."""
    if x.dtype is not torch.uint8:
        return integer_codes(quantizer, x)
    return (x.float() - CENTER).clamp(*integer_range(quantizer.bits, quantizer.signed))


def mark_nan(numbers: Tensor, pixel_values: Tensor) -> Tensor:
    """NaN in place of the `numbers`, (batch, ...), of images, (batch, ...), with NaN among their pixels."""
    nan = pixel_values.isnan().flatten(1).any(1)
    return numbers.masked_fill(nan.view(-1, *[1] * (numbers.dim() - 1)), torch.nan)
