"""Attention, and GELU with the quantizer behind it, of a model that is compiled as a whole, in bfloat16.

There are kernels for them (`numerics/native/bfloat16_attention.cpp`, for processors with AMX, and
`numerics/native/gelu.cpp`, for those that convert to bfloat16) that take less time than what the compiler makes of
the same: small products one after the other, and functions in more instructions. They are operators to it, which it
does not look into. Operators compute without the kernels too: what is compiled does not depend on a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..numerics.fused import fused_quantize, fused_quantize_heads
from ..numerics.native import bfloat16_attention, gelu
from ..numerics.native.attention import QuantizedHeads
from ..numerics.native.bfloat16_attention import Quantizers
from ..numerics.products import gradient_of_bias
from ..numerics.quantization import Quantization
from ..numerics.traced import traced_gelu_gradients, traced_probabilities, traced_softmax_statistics
from .fused_attention import gradients_by_products
from .fused_layers import Scaled
from .fusion import is_traced
from .notes import note, noted
from .operators import as_projected, like_gradient, or_empty, quantizations_from

CONVERTS = torch.cpu._is_avx512_bf16_supported()
HAS_TILES = torch.cpu._is_amx_tile_supported()
_TERMS = "_sum_of"
"""Attribute of a sum: a product, and the bias added to it."""


def applies_to(x: Tensor) -> bool:
    """Whether a kernel of this module may compute on `x`, in what is being compiled."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return on_cpu and torch.is_grad_enabled() and is_traced(x)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, quantizers: Sequence[Scaled]
) -> Tensor:
    """The output of `fused_attention`, which says what the arguments are; the last are of queries, keys, values and
    probabilities."""
    log_scales, scales = [scaled.log_scale for scaled in quantizers], [_float(scaled.scale) for scaled in quantizers]
    quantizations = [scaled.quantization for scaled in quantizers]
    operands = (heads.to(torch.bfloat16) for heads in (query, key, value))
    return _Attention.apply(*operands, _float(mask), *log_scales, *scales, *quantizations, scaling)


def remember_terms(total: Tensor, product: Tensor, bias: Tensor) -> None:
    """Let a quantizer behind the GELU of a sum know what it is the sum of, so that the sum need not be written."""
    note(total, _TERMS, (product, bias), product, bias)


def quantize_gelu(argument: Tensor, scaled: Scaled) -> Tensor:
    """Fake-quantized result of the exact GELU of `argument`; one scale."""
    terms = noted(argument, _TERMS) or (argument, None)
    return _QuantizeGelu.apply(
        *terms, scaled.log_scale, _float(scaled.scale), _float(scaled.offset), scaled.quantization
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, ls_q, ls_k, ls_v, ls_p, s_q, s_k, s_v, s_p, q, k, v, p, scaling):
        numbers = [number for quantization in (q, k, v, p) for number in quantization.numbers()]
        operands, quantizers = (query, key, value, mask), (s_q, s_k, s_v, s_p, numbers, scaling)
        output, highest, reciprocals = torch.ops.hf_vaq.bfloat16_attention(*operands, *quantizers)
        ctx.save_for_backward(*operands, highest, reciprocals, s_q, s_k, s_v, s_p)
        ctx.options = numbers, scaling, [quantization.factor for quantization in (q, k, v, p)]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        numbers, scaling, factors = ctx.options
        mask = ctx.saved_tensors[3]
        wants_mask = mask is not None and ctx.needs_input_grad[3]
        *by_heads, by_scores, q, k, v, p = torch.ops.hf_vaq.bfloat16_attention_gradients(
            grad, *ctx.saved_tensors, numbers, scaling, wants_mask
        )
        grad_mask = by_scores.sum_to_size(mask.shape) if wants_mask else None
        log_scales = [None if rule == "none" else found for rule, found in zip(factors, (q, k, v, p), strict=True)]
        return *by_heads, grad_mask, *log_scales, *[None] * 9


class _QuantizeGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, product, bias, log_scale, scale, offset, quantization):
        ctx.save_for_backward(product, bias, scale, offset)
        ctx.quantization = quantization
        return torch.ops.hf_vaq.bfloat16_gelu(product, bias, scale, offset, quantization.numbers())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        product, bias, scale, offset = ctx.saved_tensors
        by_product, by_bias, by_scale, by_offset = torch.ops.hf_vaq.bfloat16_gelu_gradients(
            grad, product, bias, scale, offset, ctx.quantization.numbers()
        )
        by_bias, learned = None if bias is None else by_bias, ctx.quantization.factor != "none"
        by_offset = by_offset if learned and offset is not None else None
        return by_product, by_bias, by_scale if learned else None, None, by_offset, None


# The operators.


@torch.library.custom_op("hf_vaq::bfloat16_attention", mutates_args=())
def _bfloat16_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_scale: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    probability_scale: Tensor,
    numbers: Sequence[int],
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    quantizers = _quantizers((query_scale, key_scale, value_scale, probability_scale), numbers)
    operands = [as_projected(heads) for heads in (query, key, value)]
    if bfloat16_attention.can_attend(*operands, mask, quantizers):
        return bfloat16_attention.attend(*operands, mask, quantizers, scaling)
    q, k, v = (fused_quantize_heads(*heads) for heads in _heads(operands, quantizers))
    scores = torch.matmul(q, k.transpose(2, 3))
    statistics = traced_softmax_statistics(scores, mask, scaling)
    probabilities = traced_probabilities(scores, mask, scaling, *statistics)
    quantized = fused_quantize(probabilities, probability_scale, None, quantizers.quantizations[-1], q.dtype)
    output = torch.matmul(quantized, v).transpose(1, 2).contiguous()
    return output, *(statistic.squeeze(-1) for statistic in statistics)


@_bfloat16_attention.register_fake
def _(query, key, value, mask, *rest):
    output = query.new_empty(query.transpose(1, 2).shape)
    return output, *(query.new_empty(query.shape[:-1], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("hf_vaq::bfloat16_attention_gradients", mutates_args=())
def _bfloat16_attention_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    highest: Tensor,
    reciprocals: Tensor,
    query_scale: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    probability_scale: Tensor,
    numbers: Sequence[int],
    scaling: float,
    wants_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    quantizers = _quantizers((query_scale, key_scale, value_scale, probability_scale), numbers)
    operands, grad = [as_projected(heads) for heads in (query, key, value)], grad.contiguous()
    if bfloat16_attention.can_attend(*operands, mask, quantizers):
        found = bfloat16_attention.differentiate(
            grad, *operands, mask, highest, reciprocals, quantizers, scaling, wants_scores
        )
    else:
        heads = _heads(operands, quantizers)
        quantized = fused_quantize_heads(*heads[0]), fused_quantize_heads(*heads[1])
        scores = torch.matmul(quantized[0], quantized[1].transpose(2, 3))
        statistics = highest.unsqueeze(-1), reciprocals.unsqueeze(-1)
        probabilities = traced_probabilities(scores, mask, scaling, *statistics).to(grad.dtype)
        of_probabilities = QuantizedHeads(probabilities, probability_scale, quantizers.quantizations[-1])
        found = gradients_by_products(grad, None, *heads, of_probabilities, quantized, scaling, wants_scores)
    by_scores = query_scale.new_empty(0) if found.scores is None else found.scores.to(torch.float32)
    return (*found[:3], by_scores, *(or_empty(tensor, query_scale) for tensor in found.log_scales))


@_bfloat16_attention_gradients.register_fake
def _(grad, query, key, value, *rest):
    *scales, numbers, _, wants_scores = rest[3:]
    by_heads = (grad.new_empty(grad.shape).transpose(1, 2) for _ in range(3))
    by_scores = scales[0].new_empty((*query.shape[:-1], query.shape[2]) if wants_scores else (0,))
    quantizations = _quantizers(scales, numbers).quantizations
    of_scales = (like_gradient(scale, of, scale) for scale, of in zip(scales, quantizations, strict=True))
    return (*by_heads, by_scores, *of_scales)


@torch.library.custom_op("hf_vaq::bfloat16_gelu", mutates_args=())
def _bfloat16_gelu(
    product: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor | None, numbers: Sequence[int]
) -> Tensor:
    product, quantization = product.contiguous(), Quantization.from_numbers(numbers)
    if gelu.can_quantize(product, bias, scale, offset):
        return gelu.quantize(product, bias, scale, offset, quantization)
    return fused_quantize(F.gelu(_sum(product, bias)), scale, offset, quantization, product.dtype)


@_bfloat16_gelu.register_fake
def _(product, bias, scale, offset, numbers):
    return product.new_empty(product.shape)


@torch.library.custom_op("hf_vaq::bfloat16_gelu_gradients", mutates_args=())
def _bfloat16_gelu_gradients(
    grad: Tensor, product: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor | None, numbers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, product, quantization = grad.contiguous(), product.contiguous(), Quantization.from_numbers(numbers)
    if gelu.can_quantize(product, bias, scale, offset):
        found = gelu.gradients(grad, product, bias, scale, offset, quantization)
    else:
        by_sum, *of_quantizer = traced_gelu_gradients(grad, _sum(product, bias), scale, offset, quantization)
        found = by_sum.to(grad.dtype), None if bias is None else gradient_of_bias(by_sum), *of_quantizer
    return found[0], *(or_empty(tensor, scale) for tensor in found[1:])


@_bfloat16_gelu_gradients.register_fake
def _(grad, product, bias, scale, offset, numbers):
    quantization = Quantization.from_numbers(numbers)
    of_quantizer = (like_gradient(parameter, quantization, scale) for parameter in (scale, offset))
    by_bias = scale.new_empty((0,) if bias is None else bias.shape)
    return product.new_empty(product.shape), by_bias, *of_quantizer


def _quantizers(scales: Sequence[Tensor], numbers: Sequence[int]) -> Quantizers:
    return Quantizers(scales, quantizations_from(numbers, len(scales)))


def _heads(operands: Sequence[Tensor], quantizers: Quantizers) -> list[QuantizedHeads]:
    of_values = zip(operands, quantizers.scales[:3], quantizers.quantizations[:3], strict=True)
    return [QuantizedHeads(*heads) for heads in of_values]


def _float(tensor: Tensor | None) -> Tensor | None:
    """In float32, as the operators take all that is small."""
    return None if tensor is None else tensor.to(torch.float32)


def _sum(product: Tensor, bias: Tensor | None) -> Tensor:
    return product.to(torch.float32) if bias is None else product + bias
