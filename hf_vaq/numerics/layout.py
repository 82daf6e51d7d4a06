"""Tensors of any shape and memory order as the kernels of fake quantization see them."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import ScaleGroups


class Layout:
    """How a tensor lies in memory, seen as (n,), (groups, n) or (m, groups, n).

    Args:
        x: the tensor.
        groups: which of its elements share a scale.
    """

    def __init__(self, x: Tensor, groups: ScaleGroups):
        self.order: list[int] | None = None
        self.traced = torch.compiler.is_compiling()  # the compiler of a whole model chooses the order by itself
        if not self.traced and not x.is_contiguous():
            order = sorted(range(x.dim()), key=lambda dimension: -x.stride(dimension))
            if x.permute(order).is_contiguous():
                self.order = order
        self.sizes = list(x.shape) if self.order is None else [x.shape[i] for i in self.order]
        self.groups = groups
        if groups.count == 1:
            self.shape: tuple[int, ...] = tuple(x.shape) if self.traced else (x.numel(),)
        else:
            dimension = groups.dim % x.dim()
            position = dimension if self.order is None else self.order.index(dimension)
            outer, count, inner = ScaleGroups(groups.count, position).layout(self.sizes)
            self.shape = (count, inner) if outer == 1 else (outer, count, inner)

    def flat(self, x: Tensor) -> Tensor:
        """A view of `x` in this layout; a copy if it lies in memory otherwise."""
        x = x.detach()
        if self.traced:
            return x.reshape(self.shape)
        return (x if self.order is None else x.permute(self.order)).reshape(self.shape).contiguous()

    def restore(self, flat: Tensor) -> Tensor:
        """A view of what `flat` returned, in the shape of the tensor."""
        x = flat.reshape(self.sizes)
        return x if self.order is None else x.permute([self.order.index(i) for i in range(len(self.order))])

    def per_group(self, scale: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale and offset in a shape that broadcasts."""
        shape = () if self.groups.count == 1 else (self.groups.count, 1)
        return scale.detach().reshape(shape), None if offset is None else offset.detach().reshape(shape)
