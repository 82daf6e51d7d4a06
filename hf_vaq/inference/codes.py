"""Activation codes as bytes.

A code c of a quantizer with the range Qn..Qp travels as the unsigned byte c - Qn, whatever the bit-width, so zero is
the byte -Qn (the zero point).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn import PackedActivationQuantizer
from ..numerics.fake_quantize import quantize_to_codes
from ..numerics.levels import integer_range


def zero_point(quantizer: PackedActivationQuantizer) -> int:
    """The byte that stands for code zero."""
    return -integer_range(quantizer.bits, quantizer.signed)[0]


def integer_codes(quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
    """Codes Qn..Qp of `x` as float32 numbers, by the very operations of the float simulation; shape of `x`."""
    offset = None if quantizer.offset is None else quantizer.groups.expand(quantizer.offset, x.shape)
    scale = quantizer.groups.expand(quantizer.scale, x.shape)
    return quantize_to_codes(x, scale, quantizer.bits, signed=quantizer.signed, offset=offset)


def byte_codes(quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
    """Codes of `x` as bytes, uint8; shape of `x`."""
    return (integer_codes(quantizer, x) + zero_point(quantizer)).to(torch.uint8)


def from_bytes(quantizer: PackedActivationQuantizer, codes: Tensor) -> Tensor:
    """What the bytes stand for, in float32: the values that the float simulation computes with."""
    x = codes.float().sub_(zero_point(quantizer))
    x = x * quantizer.groups.expand(quantizer.scale, x.shape)
    return x if quantizer.offset is None else x + quantizer.groups.expand(quantizer.offset, x.shape)
