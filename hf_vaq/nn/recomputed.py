"""Tensors that layers do not keep for the backward pass, because they are computed again from what is kept anyway.

GELU and LayerNorm keep their argument for their own backward pass. A layer that reads their result keeps that argument
too, which takes no memory, in place of the result. What is computed again has the same bits, because the operation is
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..numerics.room import empty_with_room, has_room
from .fusion import is_untouched

_SOURCE = "_computed_from"
"""Attribute of a tensor that quantized layers read: its `Source`, and the tensor's version when that was noted."""
_TRACED_GELU = "_traced_gelu_of"
"""Attribute of a result of GELU while a model is being compiled: the argument."""
_WINDOWS = "_windows_from"
"""Attribute of an attention from the call of its layer to its own: the layer, its input and the size of the image."""


@dataclass(frozen=True)
class Gelu:
    """GELU in its exact form."""

    def __call__(self, argument: Tensor, weight: None, bias: None) -> Tensor:
        """Of `argument`, in its shape."""
        if not has_room(argument.device):
            return F.gelu(argument)
        return torch.ops.aten.gelu.out(argument, out=empty_with_room(argument.shape, argument.dtype))


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over the last dimension, and perhaps the windows that a layer of Swin cuts the result into.

    Attributes:
        eps: added to the variance.
        windows: height and width of the image, of a window, and by how much the windows are shifted; None if there are
            none.
    """

    eps: float
    windows: tuple[int, int, int, int] | None = None

    def __call__(self, argument: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of `argument`, (..., features); with windows of (images, tokens, features), the windows of all images."""
        normalized = F.layer_norm(argument, argument.shape[-1:], weight, bias, self.eps)
        if self.windows is None:
            return normalized
        order = _window_tokens(*self.windows, argument.device)
        return normalized.index_select(1, order).view(-1, self.windows[2] ** 2, argument.shape[-1])


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
    source, version = getattr(x, _SOURCE, (None, None))
    return source if source is not None and x._version == version else None


def remember_gelu(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """Forward hook of an exact GELU."""
    if torch.compiler.is_compiling():
        setattr(output, _TRACED_GELU, args[0])
    elif _may_recompute(output, args[0]):
        _note(output, Source(args[0], None, None, Gelu()))


def traced_gelu_argument(x: Tensor) -> Tensor | None:
    """What `x` is the exact GELU of, in a model that is being compiled; None if it is not known to be one."""
    return getattr(x, _TRACED_GELU, None)


def remember_norm(module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> None:
    """Forward hook of a LayerNorm over the last dimension, with weight."""
    if _may_recompute(output, args[0], module.weight):
        _note(output, Source(args[0], module.weight, module.bias, LayerNorm(module.eps)))


def remember_windows(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a layer of Swin: what its attention will get are windows of its normalized input."""
    if torch.compiler.is_compiling():
        return
    known = torch.is_grad_enabled() and len(args) >= 2 and is_untouched(layer.layernorm_before)
    setattr(layer.attention, _WINDOWS, (layer, *args[:2]) if known else None)


def note_windows(attention: nn.Module, windows: Tensor) -> None:
    """Note what the input of the attention of a layer of Swin was computed from, as its layer told."""
    if torch.compiler.is_compiling() or getattr(attention, _WINDOWS, None) is None:
        return
    layer, hidden_states, (height, width) = getattr(attention, _WINDOWS)
    setattr(attention, _WINDOWS, None)
    norm, size = layer.layernorm_before, layer.window_size
    padded = height % size or width % size
    if padded or not _may_recompute(windows, hidden_states, norm.weight) or windows.numel() != hidden_states.numel():
        return
    operation = LayerNorm(norm.eps, (height, width, size, layer.shift_size))
    _note(windows, Source(hidden_states, norm.weight, norm.bias, operation))


def _may_recompute(output: Tensor, *inputs: Tensor) -> bool:
    """Whether gradients are recorded, by operations that convert nothing, as autocast might."""
    if torch.compiler.is_compiling() or not output.requires_grad:
        return False
    return all(x.dtype is output.dtype for x in inputs)


def _note(x: Tensor, source: Source) -> None:
    setattr(x, _SOURCE, (source, x._version))


@lru_cache(maxsize=64)
def _window_tokens(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Which token stands where in the windows, flat."""
    with torch.inference_mode(False):
        tokens = torch.arange(height * width, device=device).view(height, width).roll((-shift, -shift), (0, 1))
        return tokens.view(height // size, size, width // size, size).transpose(1, 2).flatten()
