"""Attention on quantized bfloat16 operands, and its backward pass, by the compiled kernels, on processors with AMX."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..quantization import Quantization
from .attention import LONG, AttentionGradients
from .loading import can_run, kernels
from .quantizers import Plan, gradient_of_scale, plan_of_heads, pointer


class Quantizers(NamedTuple):
    """Of queries, keys, values and probabilities.

    Attributes:
        scales: (1,), or (heads,), each.
        quantizations: the rest; the groups are along dimension 1.
    """

    scales: Sequence[Tensor]
    quantizations: Sequence[Quantization]


class Attended(NamedTuple):
    """The result of attention, and from what it is computed again.

    Attributes:
        output: (batch, tokens, heads, head_dim), contiguous, bfloat16.
        highest: of a row of scores, over the logarithm of 2 to the base e, (batch, heads, tokens), float32.
        reciprocals: of the sum of its exponentials, likewise.
    """

    output: Tensor
    highest: Tensor
    reciprocals: Tensor


class _Tensors(ctypes.Structure):
    """`Tensors` of bfloat16_attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "mask")),
        *((name, ctypes.c_int64) for name in ("mask_image", "mask_head", "mask_row")),
        *((name, ctypes.c_void_p) for name in ("query_scale", "key_scale", "value_scale", "probability_scale")),
        *((name, ctypes.c_void_p) for name in ("highest", "reciprocals", "output", "grad")),
        *((name, ctypes.c_void_p) for name in ("grad_query", "grad_key", "grad_value", "grad_scores")),
        *(
            (name, ctypes.c_void_p)
            for name in ("by_query_scale", "by_key_scale", "by_value_scale", "by_probability_scale")
        ),
    )


def can_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, quantizers: Quantizers) -> bool:
    """Whether the kernels exist and take these arguments of `attend`."""
    projections = [heads.transpose(1, 2) for heads in (query, key, value)]
    if not (can_run(projections, torch.bfloat16) and can_run(quantizers.scales)):
        return False
    if kernels().bfloat16_attention is None or (mask is not None and mask.dtype != torch.float32):
        return False
    return query.shape == key.shape == value.shape and query.shape[2] <= LONG


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, quantizers: Quantizers, scaling: float
) -> Attended:
    """`softmax(query @ key^T * scaling + mask) @ value`, all operands quantized.

    Args:
        query: before quantization, (batch, heads, tokens, head_dim), contiguous with dimensions 1 and 2 exchanged.
        key: likewise.
        value: likewise.
        mask: broadcastable to (batch, heads, tokens, tokens), float32; or none.
        quantizers: of the operands.
        scaling: factor on the scores.
    """
    output = torch.empty_like(query.transpose(1, 2))
    highest, reciprocals = torch.empty(query.shape[:3]), torch.empty(query.shape[:3])
    plans = _plans(query.shape, quantizers, scaling)
    _run("vaq_attend", plans, (query, key, value), mask, quantizers.scales, (highest, reciprocals, output))
    return Attended(output, highest, reciprocals)


def differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    highest: Tensor,
    reciprocals: Tensor,
    quantizers: Quantizers,
    scaling: float,
    wants_scores: bool,
) -> AttentionGradients:
    """Gradients of `attend`.

    Args:
        grad: of the output, contiguous.
        query: as for `attend`, as are the next two.
        key: likewise.
        value: likewise.
        mask: likewise.
        highest: what `attend` returned.
        reciprocals: likewise.
        quantizers: as for `attend`.
        scaling: likewise.
        wants_scores: whether the gradient of the argument of softmax is wanted.
    """
    by_values = [torch.empty_like(heads) for heads in (query, key, value)]
    batch, heads, tokens, _ = query.shape
    scores = torch.empty(batch, heads, tokens, tokens) if wants_scores else None
    plans = _plans(query.shape, quantizers, scaling)
    log_scales = [gradient_of_scale(*arguments) for arguments in zip(quantizers.scales, plans, strict=True)]
    _run(
        "vaq_differentiate_bfloat16_attention",
        plans,
        (query, key, value),
        mask,
        quantizers.scales,
        (highest, reciprocals, None, grad, *by_values, scores, *log_scales),
    )
    return AttentionGradients(*by_values, scores, log_scales)


def _run(
    function: str,
    plans: Sequence[Plan],
    operands: Sequence[Tensor],
    mask: Tensor | None,
    scales: Sequence[Tensor],
    others: Sequence[Tensor | None],
) -> None:
    batch, heads, tokens, _ = operands[0].shape
    strides = (0, 0, 0)
    if mask is not None:
        rows = mask.expand(*mask.shape[:-1], tokens).contiguous()
        mask = rows.expand(batch, heads, tokens, tokens)
        strides = mask.stride()[:3]
    getattr(kernels().bfloat16_attention, function)(
        *(ctypes.byref(plan) for plan in plans),
        ctypes.byref(
            _Tensors(
                *(pointer(tensor) for tensor in (*operands, mask)),
                *strides,
                *(pointer(tensor) for tensor in (*scales, *others)),
            )
        ),
        torch.get_num_threads(),
    )


def _plans(shape: torch.Size, quantizers: Quantizers, scaling: float) -> list[Plan]:
    *of_values, of_probabilities = quantizers.quantizations
    plans = [plan_of_heads(quantization, shape, moved=True) for quantization in of_values]
    batch, heads, tokens, _ = shape
    return [*plans, plan_of_heads(of_probabilities, torch.Size((batch, heads, tokens, tokens)), scaling=scaling)]
