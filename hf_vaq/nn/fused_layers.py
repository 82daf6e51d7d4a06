"""Fake quantization, and layers on fake-quantized operands, as autograd functions that keep nothing quantized.

The input of a layer is kept once, as in full precision; the backward pass quantizes it again, one cheap pass over
memory, for the product that gives the gradient of the weight. A quantized weight is not kept either. What is kept goes
through `save_for_backward`, so gradient checkpointing and sharded parameters (FSDP) work as they do with stock layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..numerics.fused import fused_gradients, fused_quantize, fused_weight_gradients
from ..numerics.native.products import QuantizedMatrix, TransposedCodes
from ..numerics.quantization import Quantization
from .operations import Conv2d, Linear, autocast_dtype
from .recomputed import Gelu, LayerNorm, Recomputed, Source, source_of


class Scaled(NamedTuple):
    """The tensors of a quantizer, and what else it is.

    Attributes:
        log_scale: the learned parameter, (groups,); None if the scale is not learned.
        scale: computed from it, (groups,), without gradient.
        offset: the learned zero level, or None.
        quantization: the rest.
    """

    log_scale: Tensor | None
    scale: Tensor
    offset: Tensor | None
    quantization: Quantization


class Origin(NamedTuple):
    """What a tensor of quantized values was quantized from, so that a layer need not keep the values.

    Attributes:
        values: before quantization, or what they are computed from.
        scaled: of the quantizer.
        recomputed: values and quantized values, for all the layers that read them.
    """

    values: Tensor | Source
    scaled: Scaled
    recomputed: Recomputed


def quantize(x: Tensor, scaled: Scaled, dtype: torch.dtype | None = None) -> Tensor:
    """Fake-quantized values with the gradients of `fake_quantize`, in shape of `x` and, if given, type `dtype`."""
    settings = _QuantizeSettings(scaled.quantization, dtype)
    return _Quantize.apply(x, None, None, None, *scaled[:3], settings)


def quantize_for_many(x: Tensor, scaled: Scaled, dtype: torch.dtype) -> tuple[Tensor, Origin]:
    """As `quantize`, for several layers: they are told where it comes from, so that none has to keep it."""
    source, recomputed = source_of(x), Recomputed()
    if source is not None and isinstance(source.operation, Gelu):
        source = None
    settings = _QuantizeSettings(scaled.quantization, dtype, None if source is None else source.operation, recomputed)
    quantized = _Quantize.apply(x, *_constants(source), *scaled[:3], settings)
    return quantized, Origin(x.detach() if source is None else source, scaled._replace(log_scale=None), recomputed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Scaled | Origin | None, weights: Scaled) -> Tensor:
    """`torch.nn.functional.linear` on quantized operands.

    Args:
        x: (..., in_features); with an `Origin`, or None, the values that the product takes. What it is computed from,
            if that is known (see `recomputed`), is kept in its place.
        weight: latent, (out_features, in_features).
        bias: (out_features,), or none.
        inputs: quantizer of the input; an `Origin` if `x` is quantized already; None if it is not to be quantized.
        weights: quantizer of the weight.
    """
    return _apply(x, weight, bias, inputs, weights, Linear())


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Scaled | None, weights: Scaled, geometry: dict[str, Any]
) -> Tensor:
    """`torch.nn.functional.conv2d` on quantized operands; `geometry` is stride, padding, dilation and groups."""
    return _apply(x, weight, bias, inputs, weights, Conv2d(**geometry))


@dataclass(frozen=True)
class _QuantizeSettings:
    quantization: Quantization
    dtype: torch.dtype | None
    operation: LayerNorm | None = None
    recomputed: Recomputed | None = None


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, argument, norm_weight, norm_bias, log_scale, scale, offset, settings):
        kept = x if settings.operation is None else argument
        ctx.save_for_backward(kept, norm_weight, norm_bias, scale, offset)
        ctx.settings = settings
        return fused_quantize(x, scale, offset, settings.quantization, settings.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        kept, norm_weight, norm_bias, scale, offset = ctx.saved_tensors
        settings: _QuantizeSettings = ctx.settings
        recomputed = None if settings.recomputed is None else settings.recomputed.take()
        if recomputed is not None:
            x, _ = recomputed
        else:
            x = kept if settings.operation is None else settings.operation(kept, norm_weight, norm_bias)
        grad_x, grad_log_scale, grad_offset = fused_gradients(grad, x, scale, offset, settings.quantization)
        return grad_x, None, None, None, grad_log_scale, None, grad_offset, None


@dataclass(frozen=True)
class _Settings:
    operation: Linear | Conv2d
    inputs: Quantization | None
    weights: Quantization
    dtype: torch.dtype
    computed_by: Gelu | LayerNorm | None
    """What gives the input from what is kept; None if it is kept itself."""
    quantized_before: bool
    recomputed: Recomputed | None


def _apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Scaled | Origin | None,
    weights: Scaled,
    operation: Linear | Conv2d,
) -> Tensor:
    before = isinstance(inputs, Origin)
    values, scaled, recomputed = inputs if before else (source_of(x) if inputs is not None else None, inputs, None)
    source = values if isinstance(values, Source) else None
    constants = (values, None, None) if isinstance(values, Tensor) else _constants(source)
    if source is not None and isinstance(source.operation, Gelu):  # the gradient goes to the argument
        x, constants = source.argument, (x.detach(), None, None)
    settings = _Settings(
        operation,
        None if scaled is None else scaled.quantization,
        weights.quantization,
        autocast_dtype(x),
        None if source is None else source.operation,
        before,
        recomputed,
    )
    tensors = (None, None, None) if scaled is None else scaled[:3]
    return _Layer.apply(x, *constants, *tensors, weight, weights.log_scale, weights.scale, bias, settings)


def _constants(source: Source | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is kept of a source, without gradient."""
    tensors = (None, None, None) if source is None else source[:3]
    return tuple(None if tensor is None else tensor.detach() for tensor in tensors)


class _Layer(torch.autograd.Function):
    """`values` is the result of GELU, if `x` is its argument; else what the input was quantized or computed from."""

    @staticmethod
    def forward(
        ctx,
        x,
        values,
        norm_weight,
        norm_bias,
        log_scale,
        scale,
        offset,
        weight,
        weight_log_scale,
        weight_scale,
        bias,
        settings,
    ):
        of_gelu = isinstance(settings.computed_by, Gelu)
        kept = x if values is None or of_gelu else values
        ctx.save_for_backward(kept, norm_weight, norm_bias, scale, offset, weight, weight_scale)
        ctx.settings = settings
        ctx.types = x.dtype, None if bias is None else bias.dtype
        if settings.inputs is None or settings.quantized_before:
            operand = x.to(settings.dtype)
        else:
            operand = fused_quantize(values if of_gelu else x, scale, offset, settings.inputs, settings.dtype)
        quantized_weight = fused_quantize(weight, weight_scale, None, settings.weights, settings.dtype)
        bias = None if bias is None else bias.to(settings.dtype)
        return settings.operation.forward(operand, quantized_weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        kept, norm_weight, norm_bias, scale, offset, weight, weight_scale = ctx.saved_tensors
        settings: _Settings = ctx.settings
        x_type, bias_type = ctx.types
        wants_x, *_, wants_scale, _, wants_offset, wants_weight, wants_weight_scale, _, wants_bias, _ = (
            ctx.needs_input_grad
        )
        grads: list[Tensor | None] = [None] * 12

        def again() -> tuple[Tensor, Tensor | TransposedCodes]:
            """The input, and the operand of the product."""
            x = kept if settings.computed_by is None else settings.computed_by(kept, norm_weight, norm_bias)
            if settings.inputs is None:
                return x, x.to(settings.dtype)
            matrix = QuantizedMatrix(x, scale, offset, settings.inputs)
            return x, settings.operation.operand_of_weight_gradient(grad, matrix, settings.dtype)

        x, operand = again() if settings.recomputed is None else settings.recomputed.get(again)
        grad_bias = None
        if wants_weight or wants_weight_scale:
            grad_weight, grad_bias = settings.operation.gradients_of_parameters(grad, operand, weight, wants_bias)
            del operand
            grads[7], grads[8] = fused_weight_gradients(grad_weight, weight, weight_scale, settings.weights)
            del grad_weight
        elif wants_bias:
            grad_bias = settings.operation.gradient_of_bias(grad)
        grads[10] = grad_bias.to(bias_type) if wants_bias else None
        if wants_x or wants_scale or wants_offset:
            matrix = QuantizedMatrix(weight, weight_scale, None, settings.weights)
            if settings.inputs is None or settings.quantized_before:
                grads[0] = settings.operation.gradient_of_input(grad, x, matrix).to(x_type)
            else:
                inputs = QuantizedMatrix(x, scale, offset, settings.inputs)
                grads[0], grads[4], grads[6] = settings.operation.gradients_through_input(grad, inputs, matrix)
                if isinstance(settings.computed_by, Gelu):
                    torch.ops.aten.gelu_backward.grad_input(grads[0], kept, grad_input=grads[0])
        return tuple(grads)
