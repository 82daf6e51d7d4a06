"""Tensors that layers do not keep for the backward pass, because they are computed again from what is kept anyway.

GELU and LayerNorm keep their argument for their own backward pass. A layer that reads their result keeps that argument
too, which takes no memory, in place of the result. What is computed again has the same bits, because the operation is
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..numerics.room import empty_with_room, has_room
from .notes import note, noted

_SOURCE = "_computed_from"
"""Attribute of a tensor that quantized layers read: its `Source`."""
_TRACED_GELU = "_traced_gelu_of"
"""Attribute of a result of GELU while a model is being compiled: the argument."""


@dataclass(frozen=True)
class Gelu:
    """GELU in its exact form."""

    def __call__(self, argument: Tensor, weight: None, bias: None) -> Tensor:
        """Of `argument`, in its shape."""
        if not has_room(argument.device):
            return F.gelu(argument)
        return torch.ops.aten.gelu.out(argument, out=empty_with_room(argument.shape, argument.dtype))


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """LayerNorm over the last dimension, and perhaps the windows that the result is cut into.

    Attributes:
        eps: added to the variance.
        order: which token stands where in the windows, int32, (windows, tokens of a window); None if there are none.
    """

    eps: float
    order: Tensor | None = None

    def __call__(self, argument: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of `argument`, (..., features); with windows of (images, tokens, features), the windows of all images."""
        normalized = F.layer_norm(argument, argument.shape[-1:], weight, bias, self.eps)
        if self.order is None:
            return normalized
        return normalized.index_select(1, self.order.flatten()).view(-1, self.order.shape[1], argument.shape[-1])


class Source(NamedTuple):
    """What a tensor is computed from, and how.

    Attributes:
        argument: kept for the backward pass by the operation itself, with its gradient history.
        weight: of LayerNorm.
        bias: of LayerNorm.
        operation: takes the three.
    """

    argument: Tensor
    weight: Tensor | None
    bias: Tensor | None
    operation: Gelu | LayerNorm


class Recomputed:
    """What several backward functions compute again: the first one does, and the last one forgets it."""

    def __init__(self) -> None:
        self.tensors: tuple[Tensor, ...] | None = None

    def get(self, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `compute` returned at the first call."""
        if self.tensors is None:
            self.tensors = compute()
        return self.tensors

    def take(self) -> tuple[Tensor, ...] | None:
        """What is there, if anything is, and forget it."""
        tensors, self.tensors = self.tensors, None
        return tensors


def source_of(x: Tensor) -> Source | None:
    """What `x` is computed from, if a hook of this module noted it and `x` was not written to since."""
    return noted(x, _SOURCE)


def remember_gelu(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """Forward hook of an exact GELU."""
    if torch.compiler.is_compiling():
        if not module._forward_pre_hooks and len(module._forward_hooks) == 1:
            note(output, _TRACED_GELU, args[0], args[0])
    elif may_recompute(output, args[0]):
        note_source(output, Source(args[0], None, None, Gelu()))


def traced_gelu_argument(x: Tensor) -> Tensor | None:
    """What `x` is the exact GELU of, in a model that is being compiled; None if it is not known to be one."""
    return noted(x, _TRACED_GELU)


def remember_norm(module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> None:
    """Forward hook of a LayerNorm over the last dimension, with weight."""
    if may_recompute(output, args[0], module.weight):
        note_source(output, Source(args[0], module.weight, module.bias, LayerNorm(module.eps)))


def may_recompute(output: Tensor, *inputs: Tensor) -> bool:
    """Whether gradients are recorded, by operations that convert nothing, as autocast might."""
    if torch.compiler.is_compiling() or not output.requires_grad:
        return False
    return all(x.dtype is output.dtype for x in inputs)


def note_source(x: Tensor, source: Source) -> None:
    """Let quantized layers that read `x` know what it is computed from."""
    note(x, _SOURCE, source, source.argument)
