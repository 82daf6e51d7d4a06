"""Layers and attention of a model that is compiled as a whole, with gradients from codes, on processors with AMX.

There the kernels that multiply float32 gradients with codes (`numerics/native/tiles.h`) are faster than what the
compiler makes of quantizers and products. They are operators to it, which it does not look into; forward passes, and
all that is between the layers, stay its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..numerics.fused import fused_quantize, fused_quantize_heads, fused_weight_gradients
from ..numerics.native.attention import QuantizedHeads, can_differentiate, differentiate
from ..numerics.native.products import QuantizedMatrix
from ..numerics.products import (
    gradient_of_quantized_input,
    gradients_of_parameters,
    gradients_through_input,
    operand_of_weight_gradient,
)
from ..numerics.quantization import Quantization
from ..numerics.traced import traced_probabilities, traced_softmax_statistics
from .fused_attention import gradients_by_products
from .fused_layers import Scaled
from .fusion import is_traced
from .notes import note, noted
from .operators import as_projected, like_gradient, or_empty, quantizations_from

HAS_TILES = torch.cpu._is_amx_tile_supported()
_QUANTIZED_BY = "_quantized_by"
"""Attribute of quantized values: the quantizer's tensors."""


def applies_to(x: Tensor) -> bool:
    """Whether the functions of this module are to be used; `x` is the input of what is being compiled."""
    plain = is_traced(x) and torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
    return HAS_TILES and plain and x.device.type == "cpu" and x.dtype == torch.float32


def remember(quantized: Tensor, scaled: Scaled) -> None:
    """Let layers that read quantized values know by what they are quantized."""
    note(quantized, _QUANTIZED_BY, scaled)


def quantizer_of(x: Tensor) -> Scaled | None:
    """By what `x` is quantized already, if that is known."""
    return noted(x, _QUANTIZED_BY)


def gelu(argument: Tensor) -> Tensor:
    """GELU in its exact form, computed again in the backward pass: the compiler would keep what an operator reads."""
    return checkpoint(F.gelu, argument, use_reentrant=False, preserve_rng_state=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Scaled, weights: Scaled, quantized: bool) -> Tensor:
    """`torch.nn.functional.linear` on quantized operands.

    Args:
        x: (..., in_features).
        weight: latent, (out_features, in_features).
        bias: (out_features,), or none.
        inputs: quantizer of the input.
        weights: quantizer of the weight.
        quantized: whether `x` is quantized already; then its gradient is that of the quantized values.
    """
    quantizations = inputs.quantization, weights.quantization
    return _Linear.apply(x, weight, bias, *inputs[:3], *weights[:2], *quantizations, quantized)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, quantizers: Sequence[Scaled]
) -> Tensor:
    """The output of `fused_attention`, which says what the arguments are; the last are of queries, keys, values and
    probabilities."""
    log_scales, scales = ([scaled[i] for scaled in quantizers] for i in (0, 1))
    quantizations = [scaled.quantization for scaled in quantizers]
    return _Attention.apply(query, key, value, mask, *log_scales, *scales, *quantizations, scaling)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, weight, bias, log_scale, scale, offset, weight_log_scale, weight_scale, of_x, of_weight, quantized
    ):
        ctx.save_for_backward(x, scale, offset, weight, weight_scale)
        ctx.options = of_x, of_weight, quantized, bias is not None
        operand = x if quantized else fused_quantize(x, scale, offset, of_x)
        return F.linear(operand, fused_quantize(weight, weight_scale, None, of_weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, offset, weight, weight_scale = ctx.saved_tensors
        of_x, of_weight, quantized, has_bias = ctx.options
        operands = x, scale, offset, of_x.numbers(), weight, weight_scale, of_weight.numbers()
        grad_weight, grad_weight_log_scale, grad_bias = torch.ops.hf_vaq.linear_parameter_gradients(grad, *operands)
        grad_x, grad_log_scale, grad_offset = torch.ops.hf_vaq.linear_input_gradients(grad, *operands, quantized)
        learned = not quantized and of_x.factor != "none"
        return (
            grad_x,
            grad_weight,
            grad_bias if has_bias else None,
            grad_log_scale if learned else None,
            None,
            grad_offset if learned and offset is not None else None,
            None if of_weight.factor == "none" else grad_weight_log_scale,
            *[None] * 4,
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, ls_q, ls_k, ls_v, ls_p, s_q, s_k, s_v, s_p, q, k, v, p, scaling):
        keys = fused_quantize(key, s_k, None, k).contiguous()
        scores = torch.matmul(fused_quantize(query, s_q, None, q).contiguous(), keys.transpose(2, 3))
        highest, reciprocal = traced_softmax_statistics(scores, mask, scaling)
        probabilities = traced_probabilities(scores, mask, scaling, highest, reciprocal)
        quantized = fused_quantize(probabilities, s_p, None, p)
        ctx.save_for_backward(query, key, value, mask, s_q, s_k, s_v, s_p, scores, highest, reciprocal)
        ctx.options = (q, k, v, p), scaling
        return torch.matmul(quantized, fused_quantize(value, s_v, None, v).contiguous()).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, mask, s_q, s_k, s_v, s_p, scores, highest, reciprocal = ctx.saved_tensors
        quantizations, scaling = ctx.options
        wants_mask = mask is not None and ctx.needs_input_grad[3]
        probabilities = traced_probabilities(scores, mask, scaling, highest, reciprocal)
        numbers = [number for quantization in quantizations for number in quantization.numbers()]
        operands = query, key, value, probabilities, s_q, s_k, s_v, s_p, numbers
        *by_heads, by_scores, q, k, v, p = torch.ops.hf_vaq.attention_gradients(grad, *operands, scaling, wants_mask)
        grad_mask = by_scores.sum_to_size(mask.shape).to(mask.dtype) if wants_mask else None
        log_scales = [
            None if quantization.factor == "none" else by_scale
            for quantization, by_scale in zip(quantizations, (q, k, v, p), strict=True)
        ]
        return *by_heads, grad_mask, *log_scales, *[None] * 9


# The operators.


@torch.library.custom_op("hf_vaq::linear_parameter_gradients", mutates_args=())
def _linear_parameter_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    of_x: Sequence[int],
    weight: Tensor,
    weight_scale: Tensor,
    of_weight: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    grad, matrix = grad.contiguous(), _matrix(x, scale, offset, of_x)
    operand = operand_of_weight_gradient(grad, matrix)
    grad_weight, grad_bias = gradients_of_parameters(grad, operand, weight, True)
    quantization = Quantization.from_numbers(of_weight)
    grad_weight, by_scale = fused_weight_gradients(grad_weight, weight.contiguous(), weight_scale, quantization)
    return grad_weight, or_empty(by_scale, grad), grad_bias


@_linear_parameter_gradients.register_fake
def _(grad, x, scale, offset, of_x, weight, weight_scale, of_weight):
    return (
        grad.new_empty(weight.shape),
        like_gradient(weight_scale, Quantization.from_numbers(of_weight), grad),
        grad.new_empty(weight.shape[:1]),
    )


@torch.library.custom_op("hf_vaq::linear_input_gradients", mutates_args=())
def _linear_input_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    of_x: Sequence[int],
    weight: Tensor,
    weight_scale: Tensor,
    of_weight: Sequence[int],
    quantized: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, matrix = grad.contiguous(), _matrix(weight, weight_scale, None, of_weight)
    if quantized:
        return gradient_of_quantized_input(grad, x, matrix), grad.new_empty(0), grad.new_empty(0)
    by_x, by_scale, by_offset = gradients_through_input(grad, _matrix(x, scale, offset, of_x), matrix)
    return by_x, or_empty(by_scale, grad), or_empty(by_offset, grad)


@_linear_input_gradients.register_fake
def _(grad, x, scale, offset, of_x, weight, weight_scale, of_weight, quantized):
    parameters, quantization = (None, None) if quantized else (scale, offset), Quantization.from_numbers(of_x)
    return grad.new_empty(x.shape), *(like_gradient(parameter, quantization, grad) for parameter in parameters)


@torch.library.custom_op("hf_vaq::attention_gradients", mutates_args=())
def _attention_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    probabilities: Tensor,
    query_scale: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    probability_scale: Tensor,
    numbers: Sequence[int],
    scaling: float,
    wants_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = *(as_projected(heads) for heads in (query, key, value)), probabilities
    scales = query_scale, key_scale, value_scale, probability_scale
    quantizations = quantizations_from(numbers, len(tensors))
    operands = [QuantizedHeads(*operand) for operand in zip(tensors, scales, quantizations, strict=True)]
    grad = grad.contiguous()
    if can_differentiate(grad, *operands):
        found = differentiate(grad, *operands, scaling, wants_scores)
    else:
        quantized = fused_quantize_heads(*operands[0]), fused_quantize_heads(*operands[1])
        found = gradients_by_products(grad, None, *operands, quantized, scaling, wants_scores)
    return (*found[:3], *(or_empty(tensor, grad) for tensor in (found.scores, *found.log_scales)))


@_attention_gradients.register_fake
def _(grad, query, key, value, probabilities, *rest):
    *scales, numbers, _, wants_scores = rest
    by_heads = (grad.new_empty(grad.shape).transpose(1, 2) for _ in range(3))
    by_scores = grad.new_empty(probabilities.shape if wants_scores else (0,))
    quantizations = quantizations_from(numbers, len(scales))
    of_scales = (like_gradient(scale, of, grad) for scale, of in zip(scales, quantizations, strict=True))
    return (*by_heads, by_scores, *of_scales)


def _matrix(values: Tensor, scale: Tensor, offset: Tensor | None, numbers: Sequence[int]) -> QuantizedMatrix:
    return QuantizedMatrix(values.contiguous(), scale, offset, Quantization.from_numbers(numbers))
