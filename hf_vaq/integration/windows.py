"""How a Swin layer cuts an image into windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def window_order(layer: nn.Module, height: int, width: int, padding: int) -> tuple[Tensor, tuple[int, int]]:
    """Which token stands where in the windows of a layer, padded and cyclically shifted as it does.

    Args:
        layer: a `SwinLayer` with the window and shift sizes for this image.
        height: of the image, in tokens.
        width: see `height`.
        padding: what stands for a token that is padding.

    Returns:
        Tokens, int32, (windows, tokens of a window); and the height and width of the padded map.
    """
    size = layer.window_size
    below, right = -height % size, -width % size
    tokens = torch.arange(height * width).view(1, height, width, 1)
    tokens = layer.cyclic_shift(F.pad(tokens, (0, 0, 0, right, 0, below), value=padding))
    rows, columns = (height + below) // size, (width + right) // size
    order = tokens.view(rows, size, columns, size).transpose(1, 2).reshape(rows * columns, size * size)
    return order.int(), (height + below, width + right)
