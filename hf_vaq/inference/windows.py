"""Which tokens attend to each other, and with which bias: as the kernel of a whole layer takes it."""

from __future__ import annotations

import torch
from torch import nn

from ..integration.windows import window_order
from .layer_kernel import WindowsKernel


def shifted_windows(layer: nn.Module, height: int, width: int) -> WindowsKernel | None:
    """The windows of a Swin layer, padded and cyclically shifted as it does.

    Args:
        layer: with the window and shift sizes for this image.
        height: of the image, in tokens.
        width: see `height`.

    Returns:
        None if the relative positions are those of another window size.
    """
    bias = layer.attention.relative_position_bias()
    if bias.shape[-1] != layer.window_size**2:
        return None
    source, padded = window_order(height, width, layer.window_size, layer.shift_size)
    mask = layer.get_attn_mask(*padded, dtype=torch.float32, device=source.device)
    if mask is None:
        return WindowsKernel(height * width, source, mask=bias)
    # All windows but those at two edges have the same mask.
    masks, kinds = torch.unique(mask, dim=0, return_inverse=True)
    return WindowsKernel(height * width, source, kinds.int(), bias + masks[:, None])


def relative_position_windows(
    layer: nn.Module, tokens: int, interpolate: bool, resolution: tuple[int, int] | None
) -> WindowsKernel:
    """The one window of a BEiT layer, with the bias of its relative positions, if it has one.

    Args:
        layer: the layer.
        tokens: of an image.
        interpolate: whether position embeddings are interpolated.
        resolution: of the image, in pixels.
    """
    if layer.relative_position_bias is None:
        return WindowsKernel(tokens)
    size = tuple(pixels // layer.patch_size for pixels in resolution)
    bias = layer.relative_position_bias(size, interpolate, dim_size=tokens)
    return WindowsKernel(tokens, mask=bias.float().reshape(-1, tokens, tokens))
