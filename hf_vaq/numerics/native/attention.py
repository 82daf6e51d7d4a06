"""The backward pass of attention on quantized operands by the compiled kernel, on processors with AMX."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ..quantization import Quantization
from .loading import can_run, kernels
from .quantizers import gradient_of_scale, plan_of_heads, pointer

LONG = 1024
"""Tokens above which a head is left to PyTorch: it would not fit the caches."""


class QuantizedHeads(NamedTuple):
    """An operand of attention, and its quantizer.

    Attributes:
        values: before quantization. Queries, keys and values are (batch, heads, tokens, head_dim), contiguous after
            dimensions 1 and 2 are exchanged; probabilities (batch, heads, tokens, tokens), contiguous.
        scale: (1,), or (heads,).
        quantization: the rest; the groups are along dimension 1.
    """

    values: Tensor
    scale: Tensor
    quantization: Quantization


class AttentionGradients(NamedTuple):
    """Gradients of attention.

    Attributes:
        query: in the memory order of the queries, as for the next two.
        key: by the keys.
        value: by the values.
        scores: by the argument of softmax, if that is wanted.
        log_scales: by the logarithmic scale parameters of queries, keys, values and probabilities, if they learn.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None
    scores: Tensor | None
    log_scales: list[Tensor | None]


class _Tensors(ctypes.Structure):
    """`Tensors` of attention.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("query", "key", "value", "probabilities", "grad"),
            *("query_scale", "key_scale", "value_scale", "probability_scale"),
            *("grad_query", "grad_key", "grad_value", "grad_scores"),
            *("by_query_scale", "by_key_scale", "by_value_scale", "by_probability_scale"),
        )
    )


def can_differentiate(
    grad: Tensor, query: QuantizedHeads, key: QuantizedHeads, value: QuantizedHeads, probabilities: QuantizedHeads
) -> bool:
    """Whether the kernel exists and takes these arguments of `differentiate`."""
    projections = [heads.values.transpose(1, 2) for heads in (query, key, value)]
    scales = [heads.scale for heads in (query, key, value, probabilities)]
    if not can_run((grad, *projections, probabilities.values, *scales)) or kernels().attention is None:
        return False
    *_, tokens, others = probabilities.values.shape
    return tokens == others <= LONG and all(projection.shape == grad.shape for projection in projections)


def differentiate(
    grad: Tensor,
    query: QuantizedHeads,
    key: QuantizedHeads,
    value: QuantizedHeads,
    probabilities: QuantizedHeads,
    scaling: float,
    wants_scores: bool,
) -> AttentionGradients:
    """Gradients of `softmax(query @ key^T * scaling + mask) @ value`, all operands quantized.

    Args:
        grad: of the result, (batch, tokens, heads, head_dim), contiguous.
        query: before quantization, as are the others.
        key: likewise.
        value: likewise.
        probabilities: the result of softmax.
        scaling: factor on the scores.
        wants_scores: whether the gradient of the argument of softmax is wanted.
    """
    operands = query, key, value, probabilities
    plans = [plan_of_heads(heads.quantization, heads.values.shape, moved=True) for heads in operands[:3]]
    plans.append(plan_of_heads(probabilities.quantization, probabilities.values.shape, scaling=scaling))
    by_values = [torch.empty_like(heads.values) for heads in operands[:3]]
    scores = torch.empty_like(probabilities.values) if wants_scores else None
    log_scales = [gradient_of_scale(heads.scale, plan) for heads, plan in zip(operands, plans, strict=True)]
    values, scales = (heads.values for heads in operands), (heads.scale for heads in operands)
    tensors = (*values, grad, *scales, *by_values, scores, *log_scales)
    kernels().attention.vaq_differentiate_attention(
        *(ctypes.byref(plan) for plan in plans),
        ctypes.byref(_Tensors(*(pointer(tensor) for tensor in tensors))),
        torch.get_num_threads(),
    )
    return AttentionGradients(*by_values, scores, log_scales)
