"""Fake quantizers and their gradients by the compiled kernels; the functions of `fused` for tensors that `can_run`."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from ..log_scale import LOG_BOUND
from ..quantization import Quantization, constant_values, factor_rule
from ..room import empty_with_room
from .loading import kernels

_RULES = ("none", "numel", "l1 of the group", "mean l1 of the groups")
"""The enumeration `Factor` of quantizer.h."""


class Plan(ctypes.Structure):
    """`Plan` of quantizer.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("outer", "groups", "rows", "inner", "moved", "scales", "rule")),
        *((name, ctypes.c_double) for name in ("lowest", "highest", "factor", "scaling", "bound")),
    )


def quantize(x: Tensor, scale: Tensor, offset: Tensor | None, quantization: Quantization) -> Tensor:
    """Fake-quantized values, contiguous, with room (see `room`).

    Args:
        x: contiguous, any shape.
        scale: (groups,).
        offset: (groups,), or none.
        quantization: the rest.
    """
    result = empty_with_room(x.shape, torch.float32)
    _quantize(plan_of(quantization, x.shape), x, scale, offset, result)
    return result


def quantize_heads(x: Tensor, scale: Tensor, quantization: Quantization) -> Tensor:
    """The same for queries, keys and values.

    Args:
        x: (batch, heads, tokens, head_dim), contiguous after dimensions 1 and 2 are exchanged.
        scale: (1,), or (heads,).
        quantization: the rest.
    """
    result = empty_with_room(x.shape, torch.float32)
    _quantize(plan_of_heads(quantization, x.shape, moved=True), x, scale, None, result)
    return result


def gradients(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, quantization: Quantization, in_place: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by `x`, by the logarithmic scale parameter and by the offset.

    Args:
        grad: contiguous, in the shape of `x`.
        x: as for `quantize`; as are the others.
        scale: (groups,).
        offset: (groups,), or none.
        quantization: the rest.
        in_place: whether `grad` becomes the first of the results.
    """
    plan, grad_x = plan_of(quantization, x.shape), grad if in_place else torch.empty_like(x)
    return grad_x, *_differentiate(plan, grad, x, scale, offset, grad_x)


def head_gradients(grad: Tensor, x: Tensor, scale: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor | None]:
    """Gradients for `quantize_heads`, by `x` in its memory order, and by the logarithmic scale parameter."""
    plan, grad_x = plan_of_heads(quantization, x.shape, moved=True), torch.empty_like(x)
    return grad_x, _differentiate(plan, grad, x, scale, None, grad_x)[0]


def softmax_gradients(
    grad: Tensor, probabilities: Tensor, scale: Tensor, quantization: Quantization, scaling: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients through a fake quantizer of probabilities and the softmax that made them, see `fused`.

    Args:
        grad: contiguous, (batch, heads, tokens, tokens).
        probabilities: likewise.
        scale: (1,), or (heads,).
        quantization: the rest.
        scaling: factor on the first of the two results.
    """
    plan = plan_of_heads(quantization, probabilities.shape, scaling=scaling)
    grad_scores, grad_log_scale = torch.empty_like(probabilities), gradient_of_scale(scale, plan)
    kernels().quantizers.vaq_differentiate_softmax(
        ctypes.byref(plan),
        grad.data_ptr(),
        probabilities.data_ptr(),
        scale.data_ptr(),
        grad_scores.data_ptr(),
        pointer(grad_log_scale),
        torch.get_num_threads(),
    )
    return grad_scores, grad_log_scale


@lru_cache(maxsize=4096)
def plan_of(quantization: Quantization, shape: torch.Size) -> Plan:
    """Of a tensor that is as contiguous as its quantized values."""
    outer, groups, inner = quantization.groups.layout(shape)
    return _filled(quantization, (outer, groups, 1, inner), False, 1.0)


@lru_cache(maxsize=4096)
def plan_of_heads(quantization: Quantization, shape: torch.Size, moved: bool = False, scaling: float = 1.0) -> Plan:
    """Of queries, keys and values (`moved`: dimensions 1 and 2 are exchanged in memory), or of probabilities."""
    return _filled(quantization, tuple(shape), moved, scaling)


def _filled(quantization: Quantization, sizes: tuple[int, ...], moved: bool, scaling: float) -> Plan:
    numel = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    lowest, highest, factor, count, _ = constant_values(quantization, numel)
    rule = _RULES.index(factor_rule(quantization))
    return Plan(*sizes, moved, int(count), rule, lowest, highest, factor, scaling, LOG_BOUND)


def _quantize(plan: Plan, x: Tensor, scale: Tensor, offset: Tensor | None, result: Tensor) -> None:
    kernels().quantizers.vaq_quantize(
        ctypes.byref(plan),
        x.data_ptr(),
        scale.data_ptr(),
        pointer(offset),
        result.data_ptr(),
        torch.get_num_threads(),
    )


def _differentiate(
    plan: Plan, grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, grad_x: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    grad_log_scale = gradient_of_scale(scale, plan)
    grad_offset = None if offset is None else gradient_of_scale(offset, plan)
    kernels().quantizers.vaq_differentiate(
        ctypes.byref(plan),
        grad.data_ptr(),
        x.data_ptr(),
        scale.data_ptr(),
        pointer(offset),
        grad_x.data_ptr(),
        pointer(grad_log_scale),
        pointer(grad_offset),
        torch.get_num_threads(),
    )
    return grad_log_scale, grad_offset


def gradient_of_scale(parameter: Tensor, plan: Plan) -> Tensor | None:
    """Where that of scales (or offsets) is written; None if there is none."""
    return None if plan.rule == 0 else torch.empty_like(parameter)


def pointer(tensor: Tensor | None) -> int | None:
    """To the numbers of a tensor."""
    return None if tensor is None else tensor.data_ptr()
