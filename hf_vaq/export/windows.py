"""Swin's shifted windows in one movement each way.

transformers shifts, pads and cuts the feature map into windows behind the LayerNorm, and puts it together again behind
the output projection. All of that only moves tokens, and the projections are computed token by token. So here the
codes are moved instead, which are bytes: windows are gathered where they have just been quantized, and put back before
the output projection. Both runtimes copy whole rows at a gather, and each of the separate steps would have been a pass
over the feature map. Nothing that is computed changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.swin.modeling_swin import SwinLayer, SwinPatchMerging

from ..integration.windows import window_order
from .quantizers import ExportedQuantizer


class ExportedSwinLayer(nn.Module):
    """A `SwinLayer` whose attention has been lowered already; takes over its parts and its call.

    Args:
        layer: is changed: its attention reads quantized windows, and gives the context of the heads one behind the
            other (`apart_heads`), before the output projection.
    """

    def __init__(self, layer: SwinLayer):
        super().__init__()
        self.layer = layer
        attention = layer.attention
        self.input_quantizer = _movable(getattr(attention, "input_quantizer", None))
        if self.input_quantizer is not None:
            attention.input_quantizer = nn.Identity()
        self.output_quantizer = getattr(attention, "output_quantizer", None)
        self.o_proj, attention.o_proj = attention.o_proj, nn.Identity()
        attention.apart_heads = True

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """(batch, height * width, channels) to the same; and the attention's probabilities."""
        layer, attention = self.layer, self.layer.attention
        if not always_partition:
            layer.set_shift_and_window_size(input_dimensions)
        batch, tokens, channels = hidden_states.shape
        order, (rows, columns) = window_order(*input_dimensions, layer.window_size, layer.shift_size, padding=tokens)
        order = order.flatten()
        x = layer.layernorm_before(hidden_states)
        if len(order) > tokens:
            x = F.pad(x, (0, 0, 0, 1))  # one token of zeros, for all the padding
        x = _moved(x, self.input_quantizer, lambda x: x.index_select(1, order))
        mask = layer.get_attn_mask(rows, columns, dtype=hidden_states.dtype, device=hidden_states.device)
        context, probabilities = attention(x.reshape(-1, layer.window_size**2, channels), mask, **kwargs)
        # Rows of one head: (batch, windows * heads * tokens of a window, head_dim).
        context = context.reshape(batch, -1, attention.head_dim)
        context = context.index_select(1, joining_order(order, tokens, layer.window_size**2, attention))
        context = context.reshape(batch, tokens, channels)
        if self.output_quantizer is not None:
            context = self.output_quantizer.dequantized(context)
        hidden_states = hidden_states + self.o_proj(context)
        return hidden_states + layer.mlp(layer.layernorm_after(hidden_states)), probabilities


class ExportedPatchMerging(nn.Module):
    """A `SwinPatchMerging` that takes the four neighbours of a patch in one gather."""

    def __init__(self, layer: SwinPatchMerging):
        super().__init__()
        self.layer = layer

    def forward(self, input_feature: Tensor, input_dimensions: tuple[int, int]) -> Tensor:
        """(batch, height * width, channels) to (batch, half the height * half the width, 2 * channels)."""
        batch, tokens, channels = input_feature.shape
        order = merging_order(*input_dimensions)
        if len(order) > tokens:
            input_feature = F.pad(input_feature, (0, 0, 0, 1))
        merged = input_feature.index_select(1, order).reshape(batch, -1, 4 * channels)
        return self.layer.reduction(self.layer.norm(merged))


def joining_order(order: Tensor, tokens: int, window: int, attention: nn.Module) -> Tensor:
    """For each token and head, (tokens * heads,), its row among (windows, heads, tokens of a window)."""
    heads = attention.num_attention_heads
    place = torch.empty(tokens + 1, dtype=torch.int32)
    place[order.long()] = torch.arange(len(order), dtype=torch.int32)
    place = place[:tokens, None]
    rows = (place // window * heads + torch.arange(heads)) * window + place % window
    return rows.flatten().int()


def merging_order(height: int, width: int) -> Tensor:
    """Tokens in the order of the merged patches, (patches * 4,), where padding is token height * width."""
    tokens = torch.arange(height * width).view(height, width)
    tokens = F.pad(tokens, (0, width % 2, 0, height % 2), value=height * width)
    return torch.stack([tokens[row::2, column::2] for column in range(2) for row in range(2)], -1).flatten().int()


def _movable(quantizer: ExportedQuantizer | None) -> ExportedQuantizer | None:
    return None if quantizer is None or quantizer.grouped else quantizer


def _moved(x: Tensor, quantizer: ExportedQuantizer | None, move: Callable[[Tensor], Tensor]) -> Tensor:
    return move(x) if quantizer is None else quantizer.dequantized(move(quantizer.codes(x)))
