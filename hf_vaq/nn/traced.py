"""Fake quantizers as autograd functions for a model that is compiled as a whole.

What is kept for the backward pass is for the compiler to choose; what is saved here is only where it starts from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..numerics.fused import fused_quantize
from ..numerics.traced import (
    traced_gelu_gradients,
    traced_gradients,
    traced_probabilities,
    traced_softmax_gradients,
    written_flat,
)
from .fused_layers import Scaled, traced_quantize


def quantize(x: Tensor, scaled: Scaled, written: bool = False) -> Tensor:
    """Fake-quantized values with the gradients of `fake_quantize`, in shape and type of `x`.

    Args:
        x: values.
        scaled: the quantizer.
        written: whether the gradient of `x` is written as it is, as that of a weight; else it is taken to be the
            result of a LayerNorm. Of tensors of four dimensions (queries, patches) neither is said.
    """
    # Queries, keys and values are read transposed. Of such a tensor Inductor (seen in PyTorch 2.15, on CPUs) writes
    # sums of rows past the end of memory if their number is no multiple of a vector.
    if scaled.quantization.groups.count > 1 or x.dim() > 3 or not torch.is_autocast_enabled(x.device.type):
        return traced_quantize(x, scaled)  # in float32 less is kept so
    return _Quantize.apply(x, *scaled, not written)


def may_replace(quantizer: nn.Module | None) -> bool:
    """Whether a function of this module may do the work of a quantizer and of what is before it."""
    replaceable = getattr(quantizer, "may_be_replaced", None)
    return replaceable is not None and quantizer.groups.count == 1 and replaceable()


def quantize_gelu(argument: Tensor, scaled: Scaled) -> Tensor:
    """Fake-quantized result of the exact GELU of `argument`; one scale."""
    return _QuantizeGelu.apply(argument, *scaled)


def quantize_softmax(scores: Tensor, mask: Tensor | None, scaling: float, scaled: Scaled) -> Tensor:
    """Fake-quantized softmax of `scores * scaling + mask` over the last dimension; type of `scores`, one scale."""
    return _QuantizeSoftmax.apply(scores, mask, scaling, scaled.log_scale, scaled.scale, scaled.quantization)


def written(x: Tensor) -> Tensor:
    """`x`, which the compiler writes to memory, rather than make it again wherever it is read."""
    return _Written.apply(x)


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return written_flat(x.reshape(-1)).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, log_scale, scale, offset, quantization, by_rows):
        ctx.save_for_backward(x, scale, offset)
        ctx.options = quantization, by_rows
        return fused_quantize(x, scale, offset, quantization)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, offset = ctx.saved_tensors
        grad_x, grad_log_scale, grad_offset = traced_gradients(grad, x, scale, offset, *ctx.options)
        return grad_x, grad_log_scale, None, grad_offset, None, None


class _QuantizeGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, argument, log_scale, scale, offset, quantization):
        ctx.save_for_backward(argument, scale, offset)
        ctx.quantization = quantization
        return fused_quantize(F.gelu(argument), scale, offset, quantization)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        argument, scale, offset = ctx.saved_tensors
        grad_x, grad_log_scale, grad_offset = traced_gelu_gradients(grad, argument, scale, offset, ctx.quantization)
        return grad_x, grad_log_scale, None, grad_offset, None


class _QuantizeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, mask, scaling, log_scale, scale, quantization):
        probabilities, highest, reciprocal = traced_probabilities(scores, mask, scaling)
        ctx.save_for_backward(scores, mask, highest, reciprocal, scale)
        ctx.options = scaling, quantization
        return fused_quantize(probabilities, scale, None, quantization, scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scores, mask, highest, reciprocal, scale = ctx.saved_tensors
        scaling, quantization = ctx.options
        grad_logits, grad_log_scale = traced_softmax_gradients(
            grad, scores, mask, highest, reciprocal, scaling, scale, quantization
        )
        grad_mask = None
        if mask is not None and ctx.needs_input_grad[1]:
            grad_mask = grad_logits.sum_to_size(mask.shape).to(mask.dtype)
        return (grad_logits * scaling).to(scores.dtype), grad_mask, None, grad_log_scale, None, None
