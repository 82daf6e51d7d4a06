"""Scale groups: which elements of a tensor share one scale."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScaleGroups:
    """`count` equal, contiguous groups along dimension `dim`; each has one scale.

    One group is the whole tensor. The rows of a query projection by head are `ScaleGroups(heads, 0)`, the columns of
    an output projection by head `ScaleGroups(heads, 1)`, its output channels `ScaleGroups(out_features, 0)`, and
    queries of shape (batch, heads, tokens, head_dim) by head `ScaleGroups(heads, 1)`.
    """

    count: int = 1
    dim: int = 0

    def check(self, shape: torch.Size | tuple[int, ...], name: str = "tensor") -> None:
        """Refuse a shape that these groups do not divide.

        Raises:
            ValueError: naming `name`, its size along `dim` and the number of groups.
        """
        if self.count > 1 and shape[self.dim] % self.count:
            raise ValueError(
                f"{name}: {self.count} groups do not divide its size {shape[self.dim]} in dimension {self.dim}."
            )

    def layout(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int]:
        """How a contiguous tensor of this shape is seen by groups: (repetitions, count, consecutive elements)."""
        outer = 1 if self.count == 1 else prod(shape[: self.dim % len(shape)])
        return outer, self.count, prod(shape) // (outer * self.count)

    def expand(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Spread one value per group, (count,), so that it broadcasts against a tensor of the given shape."""
        if self.count == 1:
            return values.reshape(())
        size = shape[self.dim]
        if size != self.count:
            values = values.repeat_interleave(size // self.count, output_size=size)
        return values.view([size if i == self.dim % len(shape) else 1 for i in range(len(shape))])

    def collect(self, x: Tensor) -> Tensor:
        """Rearrange `x` to (count, elements of a group)."""
        if self.count == 1:
            return x.reshape(1, -1)
        return x.movedim(self.dim, 0).reshape(self.count, -1)
