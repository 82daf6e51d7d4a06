"""Attention on quantized queries, keys, values and probabilities as one autograd function.

It keeps the three projections, as the fused attention of full precision does, and nothing of the size tokens x tokens:
the backward pass computes probabilities again, with the same operations, so to the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..numerics.fused import (
    fused_head_gradients,
    fused_quantize,
    fused_quantize_heads,
    fused_softmax_gradients,
)
from ..numerics.native.attention import AttentionGradients, QuantizedHeads, can_differentiate, differentiate
from ..numerics.quantization import Quantization
from ..numerics.room import empty_with_room, has_room
from .fused_layers import Scaled
from .operations import autocast_dtype


@dataclass(frozen=True)
class _Settings:
    query: Quantization
    key: Quantization
    value: Quantization
    probabilities: Quantization
    scaling: float
    dtype: torch.dtype


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    quantizers: dict[str, Scaled],
) -> tuple[Tensor, Tensor]:
    """The computation of `quantized_attention` where all four tensors are quantized and none is dropped.

    Args:
        query: (batch, heads, tokens, head_dim).
        key: as `query`.
        value: as `query`.
        mask: added to the scores, broadcastable to (batch, heads, tokens, tokens), or None.
        scaling: factor on the scores.
        quantizers: by the names in `QUANTIZED_TENSORS`.

    Returns:
        Output, (batch, tokens, heads, head_dim), and quantized probabilities, (batch, heads, tokens, tokens).
    """
    names = ("query", "key", "value", "probabilities")
    settings = _Settings(*(quantizers[name].quantization for name in names), scaling, autocast_dtype(query))
    log_scales = (quantizers[name].log_scale for name in names)
    scales = (quantizers[name].scale for name in names)
    return _Attention.apply(query, key, value, mask, *log_scales, *scales, settings)


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, dtype: torch.dtype) -> Tensor:
    """Not quantized, from quantized, contiguous queries and keys; the operations of `quantized_attention`."""
    scores = torch.matmul(query, key.transpose(2, 3)).mul_(scaling)
    if mask is not None:
        scores = scores.add_(mask) if mask.dtype == scores.dtype else scores + mask
    if scores.dtype is torch.float32:  # in place: each row is read before it is written
        return torch.softmax(scores, -1, out=scores).to(dtype)
    return torch.softmax(scores, -1, dtype=torch.float32).to(dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, ls_q, ls_k, ls_v, ls_p, s_q, s_k, s_v, s_p, settings):
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        operands = (
            fused_quantize_heads(query, s_q, settings.query, settings.dtype),
            fused_quantize_heads(key, s_k, settings.key, settings.dtype),
        )
        probabilities = _probabilities(*operands, mask, settings.scaling, query.dtype)
        del operands
        quantized = fused_quantize(probabilities, s_p, None, settings.probabilities)
        del probabilities
        ctx.save_for_backward(query, key, value, mask, s_q, s_k, s_v, s_p)
        values = fused_quantize_heads(value, s_v, settings.value, settings.dtype)
        room = empty_with_room(values.shape, values.dtype) if has_room(values.device) else None
        output = torch.matmul(quantized.to(settings.dtype), values, out=room)
        return output.transpose(1, 2).contiguous(), quantized

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_probabilities):
        if grad is None and grad_probabilities is None:
            return (None,) * 13
        query, key, value, mask, s_q, s_k, s_v, s_p = ctx.saved_tensors
        settings: _Settings = ctx.settings
        q = fused_quantize_heads(query, s_q, settings.query, settings.dtype)
        k = fused_quantize_heads(key, s_k, settings.key, settings.dtype)
        probabilities = _probabilities(q, k, mask, settings.scaling, query.dtype)
        operands = (
            QuantizedHeads(query, s_q, settings.query),
            QuantizedHeads(key, s_k, settings.key),
            QuantizedHeads(value, s_v, settings.value),
            QuantizedHeads(probabilities, s_p, settings.probabilities),
        )
        wants_mask = mask is not None and ctx.needs_input_grad[3]
        if grad is not None and grad_probabilities is None and can_differentiate(grad, *operands):
            del q, k
            found = differentiate(grad, *operands, settings.scaling, wants_mask)
        else:
            found = gradients_by_products(grad, grad_probabilities, *operands, (q, k), settings.scaling, wants_mask)
        grad_mask = found.scores.sum_to_size(mask.shape).to(mask.dtype) if wants_mask else None
        return *found[:3], grad_mask, *found.log_scales, *[None] * 5


def gradients_by_products(
    grad: Tensor | None,
    grad_probabilities: Tensor | None,
    query: QuantizedHeads,
    key: QuantizedHeads,
    value: QuantizedHeads,
    probabilities: QuantizedHeads,
    quantized: tuple[Tensor, Tensor],
    scaling: float,
    wants_scores: bool,
) -> AttentionGradients:
    """As `native.attention.differentiate`, in PyTorch's products.

    Args:
        grad: of the output, (batch, tokens, heads, head_dim), or None.
        grad_probabilities: of quantized probabilities, (batch, heads, tokens, tokens), or None; not both are None.
        query: before quantization, as are the others.
        key: likewise.
        value: likewise.
        probabilities: likewise.
        quantized: queries and keys, as the products take them.
        scaling: factor on the scores.
        wants_scores: whether the gradient of the argument of softmax is wanted.
    """
    q, k = quantized
    grad_value = grad_log_v = None
    if grad is not None:
        grad = grad.transpose(1, 2).contiguous()
        p = fused_quantize(probabilities.values, probabilities.scale, None, probabilities.quantization).to(q.dtype)
        grad_value, grad_log_v = fused_head_gradients(torch.matmul(p.transpose(2, 3), grad), *value)
        del p
        v = fused_quantize_heads(*value, q.dtype)
        through_values = torch.matmul(grad, v.transpose(2, 3))
        del v, grad
        grad_probabilities = through_values if grad_probabilities is None else grad_probabilities + through_values
    by_softmax = 1.0 if wants_scores else scaling
    grad_scores, grad_log_p = fused_softmax_gradients(grad_probabilities, *probabilities, by_softmax)
    del grad_probabilities
    by_query, by_key = torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(2, 3), q)
    if wants_scores:
        by_query, by_key = by_query.mul_(scaling), by_key.mul_(scaling)
    else:
        grad_scores = None
    grad_query, grad_log_q = fused_head_gradients(by_query, *query)
    grad_key, grad_log_k = fused_head_gradients(by_key, *key)
    log_scales = [grad_log_q, grad_log_k, grad_log_v, grad_log_p]
    return AttentionGradients(grad_query, grad_key, grad_value, grad_scores, log_scales)
