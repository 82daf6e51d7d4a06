"""Fake quantization, and layers on fake-quantized operands, as autograd functions that keep nothing quantized.

The input of a layer is kept once, as in full precision; the backward pass quantizes it again, one cheap pass over
memory, for the product that gives the gradient of the weight. A quantized weight is not kept either. What is kept goes
through `save_for_backward`, so gradient checkpointing and sharded parameters (FSDP) work as they do with stock layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..numerics.fused import Quantization, fused_gradients, fused_quantize
from ..numerics.products import gradient_of_linear_input, gradient_of_linear_weight


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
    """What a tensor of quantized values was quantized from, so that a layer need not keep the values."""

    values: Tensor
    scaled: Scaled


class Activated(NamedTuple):
    """GELU of `values`, to be quantized: what is kept is the argument, not the result."""

    values: Tensor
    scaled: Scaled


def quantize(x: Tensor, scaled: Scaled, dtype: torch.dtype | None = None) -> Tensor:
    """Fake-quantized values with the gradients of `fake_quantize`, in shape of `x` and, if given, type `dtype`."""
    return _Quantize.apply(x, scaled.log_scale, scaled.scale, scaled.offset, scaled.quantization, dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Scaled | Origin | Activated | None,
    weights: Scaled,
) -> Tensor:
    """`torch.nn.functional.linear` on quantized operands.

    Args:
        x: (..., in_features); with an `Origin`, or None, the values that the product takes.
        weight: latent, (out_features, in_features).
        bias: (out_features,), or none.
        inputs: quantizer of the input; an `Origin` if `x` is quantized already; `Activated` if it is an activation
            whose argument is kept; None if it is not to be quantized.
        weights: quantizer of the weight.
    """
    return _apply(x, weight, bias, inputs, weights, _Linear())


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Scaled | None, weights: Scaled, geometry: dict[str, Any]
) -> Tensor:
    """`torch.nn.functional.conv2d` on quantized operands; `geometry` is stride, padding, dilation and groups."""
    return _apply(x, weight, bias, inputs, weights, _Conv2d(*(geometry[name] for name in _Conv2d.__annotations__)))


def traced_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, in a model that is compiled as a whole, with the faster gradients of this module.

    Args:
        x: quantized already, (..., in_features).
        weight: quantized already, (out_features, in_features).
        bias: (out_features,), or none.
    """
    return _traced(x, weight, bias, _Linear())


def traced_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]) -> Tensor:
    """The same for `torch.nn.functional.conv2d`; `geometry` as for `conv2d`."""
    return _traced(x, weight, bias, _Conv2d(*(geometry[name] for name in _Conv2d.__annotations__)))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which a matrix product takes `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, log_scale, scale, offset, quantization, dtype):
        ctx.save_for_backward(x, scale, offset)
        ctx.quantization = quantization
        return fused_quantize(x, scale, offset, quantization, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, offset = ctx.saved_tensors
        grad_x, grad_log_scale, grad_offset = fused_gradients(grad, x, scale, offset, ctx.quantization)
        return grad_x, grad_log_scale, None, grad_offset, None, None


@dataclass(frozen=True)
class _Linear:
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def gradient_of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gradient_of_linear_weight(grad, x)

    def gradient_of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gradient_of_linear_input(grad, weight)

    def gradient_of_bias(self, grad: Tensor) -> Tensor:
        return grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32)


@dataclass(frozen=True)
class _Conv2d:
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def gradient_of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._gradients(grad, x, weight, [False, True, False])[1]

    def gradient_of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if not self._is_patches(x, weight):
            return self._gradients(grad, x, weight, [True, False, False])[0]
        # Patches that do not overlap: a matrix product, several times as fast as the general case.
        patches = grad.permute(0, 2, 3, 1) @ weight.flatten(1)
        patches = patches.unflatten(-1, weight.shape[1:])  # (batch, rows, columns, channels, height, width)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def _is_patches(self, x: Tensor, weight: Tensor) -> bool:
        kernel = tuple(weight.shape[2:])
        simple = self.groups == 1 and not any(self.padding) and all(step == 1 for step in self.dilation)
        return simple and self.stride == kernel and all(n % k == 0 for n, k in zip(x.shape[2:], kernel, strict=True))

    def gradient_of_bias(self, grad: Tensor) -> Tensor:
        return grad.sum((0, 2, 3), dtype=torch.float32)

    def _gradients(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor]:
        geometry = list(self.stride), list(self.padding), list(self.dilation), False, [0, 0], self.groups
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, wanted)


def _traced(x: Tensor, weight: Tensor, bias: Tensor | None, operation: _Linear | _Conv2d) -> Tensor:
    dtype = autocast_dtype(x)
    return _Product.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), operation)


class _Product(torch.autograd.Function):
    """An operation on quantized operands. What is kept is for the compiler to choose."""

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
            ctx.operation.gradient_of_weight(grad, x, weight) if wants_weight else None,
            ctx.operation.gradient_of_bias(grad).to(grad.dtype) if wants_bias else None,
            None,
        )


@dataclass(frozen=True)
class _Settings:
    operation: _Linear | _Conv2d
    inputs: Quantization | None
    quantized_before: bool
    activated: bool
    weights: Quantization
    dtype: torch.dtype


def _apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Scaled | Origin | Activated | None,
    weights: Scaled,
    operation: _Linear | _Conv2d,
) -> Tensor:
    before, activated = isinstance(inputs, Origin), isinstance(inputs, Activated)
    values, scaled = (inputs.values, inputs.scaled) if before or activated else (None, inputs)
    if activated:  # the gradient goes to the argument
        x, values = values, x.detach()
    tensors = (None, None, None) if scaled is None else (scaled.log_scale, scaled.scale, scaled.offset)
    settings = _Settings(
        operation,
        None if scaled is None else scaled.quantization,
        before,
        activated,
        weights.quantization,
        autocast_dtype(x),
    )
    return _Layer.apply(x, values, *tensors, weight, weights.log_scale, weights.scale, bias, settings)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, log_scale, scale, offset, weight, weight_log_scale, weight_scale, bias, settings):
        kept = values if settings.quantized_before else x
        ctx.save_for_backward(kept, scale, offset, weight, weight_scale)
        ctx.settings = settings
        ctx.types = x.dtype, None if bias is None else bias.dtype
        if settings.inputs is None or settings.quantized_before:
            operand = x.to(settings.dtype)
        else:
            source = values if settings.activated else x
            operand = fused_quantize(source, scale, offset, settings.inputs, settings.dtype)
        quantized_weight = fused_quantize(weight, weight_scale, None, settings.weights, settings.dtype)
        bias = None if bias is None else bias.to(settings.dtype)
        return settings.operation.forward(operand, quantized_weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, offset, weight, weight_scale = ctx.saved_tensors
        settings: _Settings = ctx.settings
        x_type, bias_type = ctx.types
        wants_x, _, wants_scale, _, wants_offset, wants_weight, wants_weight_scale, _, wants_bias, _ = (
            ctx.needs_input_grad
        )
        grads: list[Tensor | None] = [None] * 10
        before_gelu = None
        if settings.activated:
            before_gelu, x = x, F.gelu(x)
        if wants_bias:
            grads[8] = settings.operation.gradient_of_bias(grad).to(bias_type)
        if wants_weight or wants_weight_scale:
            if settings.inputs is None:
                operand = x.to(settings.dtype)
            else:
                operand = fused_quantize(x, scale, offset, settings.inputs, settings.dtype)
            grad_weight = settings.operation.gradient_of_weight(grad, operand, weight)
            del operand
            grads[5], grads[6], _ = fused_gradients(grad_weight, weight, weight_scale, None, settings.weights)
            del grad_weight
        if wants_x or wants_scale or wants_offset:
            quantized_weight = fused_quantize(weight, weight_scale, None, settings.weights, settings.dtype)
            grad_x = settings.operation.gradient_of_input(grad, x, quantized_weight)
            del quantized_weight
            if settings.inputs is None or settings.quantized_before:
                grads[0] = grad_x.to(x_type)
            else:
                grads[0], grads[2], grads[4] = fused_gradients(grad_x, x, scale, offset, settings.inputs)
                if before_gelu is not None:
                    torch.ops.aten.gelu_backward.grad_input(grads[0], before_gelu, grad_input=grads[0])
        return tuple(grads)
