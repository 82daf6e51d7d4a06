"""Fake quantizers, and products of what they quantized, as autograd functions for a model that is compiled as a whole.

What is kept for the backward pass is for the compiler to choose; what is saved here is only where it starts from. By
itself it would keep quantized operands of products beside what they were quantized from. A checkpointed region is the
way to have them computed again. Under autocast operands take half the memory, and are left to the compiler.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..numerics.fused import fused_quantize
from ..numerics.products import gradient_of_bias
from ..numerics.traced import (
    traced_gelu_gradients,
    traced_gradients,
    traced_probabilities,
    traced_softmax_gradients,
    traced_softmax_statistics,
    written_flat,
)
from . import bfloat16, fused_layers
from .fused_layers import Scaled
from .fusion import may_be_replaced
from .operations import Conv2d, Linear, autocast_dtype


def quantize(x: Tensor, scaled: Scaled, written: bool = False) -> Tensor:
    """Fake-quantized values with the gradients of `fake_quantize`, in shape and type of `x`.

    Args:
        x: values.
        scaled: the quantizer.
        written: whether the gradient of `x` is written as it is, as that of a weight; else it is taken to be the
            result of a LayerNorm. Of tensors of four dimensions (queries, patches) neither is said.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return checkpoint(_contiguously_quantized, x, scaled, use_reentrant=False, preserve_rng_state=False)
    # Queries, keys and values are read transposed. Of such a tensor Inductor (seen in PyTorch 2.15, on CPUs) writes
    # sums of rows past the end of memory if their number is no multiple of a vector.
    if scaled.quantization.groups.count > 1 or x.dim() > 3:
        return fused_layers.quantize(x, scaled)
    return _Quantize.apply(x, *scaled, not written)


def _contiguously_quantized(x: Tensor, scaled: Scaled) -> Tensor:
    # As a product wants its operand: what rearranges it later would not belong to the region, and be kept.
    return fused_layers.quantize(x, scaled).contiguous()


def may_replace(quantizer: nn.Module | None) -> bool:
    """Whether a function of this module may do the work of a quantizer and of what is before it."""
    return may_be_replaced(quantizer) and quantizer.groups.count == 1


def quantize_gelu(argument: Tensor, scaled: Scaled) -> Tensor:
    """Fake-quantized result of the exact GELU of `argument`; one scale."""
    return _QuantizeGelu.apply(argument, *scaled)


def quantize_softmax(scores: Tensor, mask: Tensor | None, scaling: float, scaled: Scaled) -> Tensor:
    """Fake-quantized softmax of `scores * scaling + mask` over the last dimension; type of `scores`, one scale."""
    statistics = traced_softmax_statistics(scores.detach(), None if mask is None else mask.detach(), scaling)
    arguments = scores, mask, *statistics, scaling, scaled.log_scale, scaled.scale, scaled.quantization
    if torch.is_autocast_enabled(scores.device.type):
        return _QuantizeSoftmax.apply(*arguments)
    return checkpoint(_QuantizeSoftmax.apply, *arguments, use_reentrant=False, preserve_rng_state=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, with_terms: bool = False) -> Tensor:
    """`torch.nn.functional.linear` with the gradients of `Linear`.

    Args:
        x: quantized already, (..., in_features).
        weight: quantized already, (out_features, in_features).
        bias: (out_features,), or none.
        with_terms: whether a quantizer behind a GELU of the result may add the bias by itself.
    """
    dtype = autocast_dtype(x)
    if bias is None or dtype != torch.bfloat16:
        return _product(x, weight, bias, Linear())
    # PyTorch's product with bias copies the bias to every row first; here it joins what reads the result.
    product, bias = _product(x, weight, None, Linear()), bias.to(torch.float32)
    total = _AddBias.apply(product, bias)
    if with_terms:
        bfloat16.remember_terms(total, product, bias)
    return total


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, operation: Conv2d) -> Tensor:
    """The same for `torch.nn.functional.conv2d`."""
    return _product(x, weight, bias, operation)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, operation: Linear | Conv2d) -> Tensor:
    dtype = autocast_dtype(x)
    return _Product.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), operation)


def written(x: Tensor) -> Tensor:
    """`x`, which the compiler writes to memory, rather than make it again wherever it is read."""
    return _Written.apply(x)


class _AddBias(torch.autograd.Function):
    """A product plus a bias in float32, in the type of the product."""

    @staticmethod
    def forward(ctx, product, bias):
        return (product + bias).to(product.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # By itself PyTorch would convert the gradient to float32 and back, which the compiler takes for a copy.
        return grad, gradient_of_bias(grad)


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
    def forward(ctx, scores, mask, highest, reciprocal, scaling, log_scale, scale, quantization):
        ctx.save_for_backward(scores, mask, highest, reciprocal, scale)
        ctx.options = scaling, quantization
        probabilities = traced_probabilities(scores, mask, scaling, highest, reciprocal)
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
        return (grad_logits * scaling).to(scores.dtype), grad_mask, None, None, None, grad_log_scale, None, None


class _Product(torch.autograd.Function):
    """An operation on quantized operands."""

    @staticmethod
    def forward(ctx, x, weight, bias, operation):
        ctx.save_for_backward(x, weight)
        ctx.operation = operation
        return operation.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            ctx.operation.gradient_of_input(grad, x, weight) if wants_x else None,
            ctx.operation.gradients_of_parameters(grad, x, weight, False)[0] if wants_weight else None,
            ctx.operation.gradient_of_bias(grad).to(grad.dtype) if wants_bias else None,
            None,
        )
