"""How a Swin layer cuts an image into windows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.fusion import is_untouched
from ..nn.recomputed import LayerNorm, Source, may_recompute, note_source

_WINDOWS = "_windows_from"
"""Attribute of an attention from the call of its layer to its own: the layer, its input and the size of the image."""


def window_order(height: int, width: int, size: int, shift: int, padding: int = -1) -> tuple[Tensor, tuple[int, int]]:
    """Which token stands where in the windows of a layer, padded and cyclically shifted as a `SwinLayer` does.

    Args:
        height: of the image, in tokens.
        width: see `height`.
        size: height and width of a window, as the layer has them for this image.
        shift: by how many tokens the windows are shifted, likewise.
        padding: what stands for a token that is padding.

    Returns:
        Tokens, int32, (windows, tokens of a window); and the height and width of the padded map.
    """
    below, right = -height % size, -width % size
    tokens = F.pad(torch.arange(height * width).view(height, width), (0, right, 0, below), value=padding)
    tokens = tokens.roll((-shift, -shift), (0, 1))
    rows, columns = (height + below) // size, (width + right) // size
    order = tokens.view(rows, size, columns, size).transpose(1, 2).reshape(rows * columns, size * size)
    return order.int(), (height + below, width + right)


@lru_cache(maxsize=64)
def _order_on(device: torch.device, height: int, width: int, size: int, shift: int) -> Tensor:
    # Made outside of inference mode even when first asked for inside: it may be used in training later.
    with torch.inference_mode(False):
        return window_order(height, width, size, shift)[0].to(device)


def remember_windows(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a layer of Swin: what its attention will get are windows of its normalized input."""
    if torch.compiler.is_compiling():
        return
    # Gradient checkpointing runs the layer twice and its hooks once; a hook after this one may change the input.
    known = (
        torch.is_grad_enabled()
        and len(args) >= 2
        and is_untouched(layer.layernorm_before)
        and not getattr(layer, "gradient_checkpointing", False)
        and next(reversed(layer._forward_pre_hooks.values())) is remember_windows
    )
    setattr(layer.attention, _WINDOWS, (layer, *args[:2]) if known else None)


def note_windows(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of its attention: note what the windows were computed from, as the layer told."""
    if torch.compiler.is_compiling() or getattr(attention, _WINDOWS, None) is None:
        return
    layer, hidden_states, (height, width) = getattr(attention, _WINDOWS)
    setattr(attention, _WINDOWS, None)
    norm, size = layer.layernorm_before, layer.window_size
    if next(iter(attention._forward_pre_hooks.values())) is not note_windows:
        return  # a hook before this one may have changed the windows
    windows = args[0] if args else kwargs["hidden_states"]
    padded = height % size or width % size
    if padded or not may_recompute(windows, hidden_states, norm.weight) or windows.numel() != hidden_states.numel():
        return
    order = _order_on(windows.device, height, width, size, layer.shift_size)
    note_source(windows, Source(hidden_states, norm.weight, norm.bias, LayerNorm(norm.eps, order)))
