"""Attention as the runtimes know it; see `quantizers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..integration.quantizer import ATTENTION
from .quantizers import ExportedQuantizer, OpenVinoQuantizer

EXPORTED_ATTENTION = f"{ATTENTION}_export"


def exported_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """`hf_vaq.nn.attention.quantized_attention` with exported quantizers; arguments and results are the same.

    Scales that differ from head to head are multiplied onto the results of the integer products. Of a module with
    `apart_heads` the result is (batch, heads, tokens, head_dim), in the quantizer's `codes` if it has an
    `output_quantizer`: whoever sets that joins the heads.
    """
    quantizers = getattr(module, "attention_quantizers", None) or {}
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling

    def quantized(name: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return quantizers[name].normalized(x) if name in quantizers else (x, None)

    query, query_scale = quantized("query", query)
    key, key_scale = transposed_key(quantizers["key"], key) if "key" in quantizers else (key.transpose(2, 3), None)
    scores = _scaled(torch.matmul(query, key), query_scale, key_scale) * factor
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities, probability_scale = quantized("probabilities", scores.softmax(-1))
    value, value_scale = quantized("value", value)
    context = _scaled(torch.matmul(probabilities, value), probability_scale, value_scale)
    quantizer = getattr(module, "output_quantizer", None)
    if quantizer is not None:
        context = quantizer.codes(context)
    if getattr(module, "apart_heads", False):
        return context, probabilities
    context = joined_heads(context, isinstance(quantizer, OpenVinoQuantizer))
    return context if quantizer is None else quantizer.dequantized(context), probabilities


def transposed_key(quantizer: ExportedQuantizer, key: Tensor) -> tuple[Tensor, Tensor | None]:
    """Quantize keys, (batch, heads, tokens, head_dim), and transpose them to (batch, heads, head_dim, tokens).

    Returns:
        As `ExportedQuantizer.normalized`.
    """
    if quantizer.grouped or not isinstance(quantizer, OpenVinoQuantizer):
        # Transposed first: between its DequantizeLinear and the product, a Transpose would keep ONNX Runtime from
        # fusing.
        return quantizer.normalized(key.transpose(2, 3))
    # As if tokens were the pixels of an image and all heads its channels: for bringing the channels of images to the
    # front OpenVINO has a fast routine, which takes less than half the time of its general one.
    batch, heads, tokens, head_dim = key.shape
    key = quantizer.quantized(key.transpose(1, 2).reshape(batch, tokens, heads * head_dim))
    channels_first = key.unsqueeze(2).permute(0, 3, 1, 2)
    return channels_first.reshape(batch, heads, head_dim, tokens), None


def joined_heads(context: Tensor, in_rows: bool) -> Tensor:
    """(batch, heads, tokens, head_dim) to (batch, tokens, heads, head_dim).

    Args:
        context: results of the heads.
        in_rows: whether to gather rows instead of transposing: OpenVINO transposes bytes one by one where rows are
            shorter than a register, and copies them whole when it gathers.
    """
    if not in_rows:
        return context.transpose(1, 2).contiguous()
    batch, heads, tokens, head_dim = context.shape
    rows = torch.arange(heads * tokens, dtype=torch.int32).view(heads, tokens).t().flatten()
    joined = context.reshape(batch, heads * tokens, head_dim).index_select(1, rows)
    return joined.reshape(batch, tokens, heads, head_dim)


def _scaled(product: Tensor, *scales: Tensor | None) -> Tensor:
    for scale in scales:
        product = product if scale is None else product * scale
    return product


# No mask function goes with it: an exported model has no attention mask as input, and a mask of nothing but zeros
# would be added to every score. Position biases and window masks are not made by mask functions.
AttentionInterface.register(EXPORTED_ATTENTION, exported_attention)
