"""A quantized activation function as a staircase: all there is to say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..numerics.levels import integer_range
from .codes import byte_codes

SIZE = 64
"""Entries of the arrays that the kernel takes: enough for five bits and one breakpoint more, for a GELU passes some
levels twice."""


@dataclass(frozen=True)
class Staircase:
    """Byte codes of a scalar function of x: `codes[number of breakpoints <= x]`.

    Attributes:
        breakpoints: float32, ascending: the smallest number of each new step.
        codes: int32, one more than breakpoints.
    """

    breakpoints: Tensor
    codes: Tensor

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor], quantizer: PackedActivationQuantizer) -> Staircase:
        """Find the staircase of a function and the quantizer of its values, by bisection of the very function.

        Args:
            function: elementwise, constant or linear far from zero (GELU, SiLU, ReLU).
            quantizer: with one scale.
        """

        def code(x: Tensor) -> Tensor:
            return byte_codes(quantizer, function(x)).int()

        _, qp = integer_range(quantizer.bits, quantizer.signed)
        reach = float(qp * quantizer.scale.abs() + (0 if quantizer.offset is None else quantizer.offset.abs()))
        limit = 16 + 2 * reach  # GELU and SiLU have reached their asymptotes there, to the last bit of a code
        x = torch.linspace(-limit, limit, 1 << 16, dtype=torch.float32)
        codes = code(x)
        change = (codes[1:] != codes[:-1]).nonzero().flatten()
        low, high = x[change], x[change + 1]
        before = codes[change]
        for _ in range(48):
            middle = low + (high - low) / 2
            same = code(middle) == before
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return cls(high, torch.cat([codes[:1], codes[change + 1]]))

    def fits(self) -> bool:
        """Whether the kernel can take it."""
        return len(self.codes) <= SIZE

    def padded(self) -> tuple[Tensor, Tensor, int]:
        """Breakpoints and codes in `SIZE` entries each, and the number of breakpoints, as the kernel takes them."""
        missing = SIZE - len(self.codes)
        breakpoints = nn.functional.pad(self.breakpoints, (0, missing + 1), value=torch.inf)
        # Infinity reaches breakpoints that are none, and stays on the last step.
        codes = nn.functional.pad(self.codes, (0, missing), value=int(self.codes[-1]))
        return breakpoints, codes, len(self.breakpoints)
