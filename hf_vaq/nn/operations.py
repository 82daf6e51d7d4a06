"""The operations of quantized layers, and their gradients by parts: a backward pass wants them one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics.fused import fused_gradients, fused_quantize
from ..numerics.native.products import QuantizedMatrix, TransposedCodes
from ..numerics.products import (
    gradient_of_bias,
    gradient_of_linear_input,
    gradient_of_linear_weight,
    gradient_of_quantized_input,
    gradients_of_parameters,
    gradients_through_input,
    operand_of_weight_gradient,
    product_of_rows,
)


@dataclass(frozen=True)
class Linear:
    """`torch.nn.functional.linear`: of x, (..., in_features), with a weight, (out_features, in_features)."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., out_features)."""
        return F.linear(x, weight, bias)

    def operand_of_weight_gradient(
        self, grad: Tensor, x: QuantizedMatrix, dtype: torch.dtype
    ) -> Tensor | TransposedCodes:
        """The input as `gradients_of_parameters` takes it, for all layers that read it; `grad` is of one's result."""
        return operand_of_weight_gradient(grad, x, dtype)

    def gradients_of_parameters(
        self, grad: Tensor, x: Tensor | TransposedCodes, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """In the shape of `weight`, from `grad`, that of the result; and of the bias, float32."""
        return gradients_of_parameters(grad, x, weight, with_bias)

    def gradient_of_input(self, grad: Tensor, x: Tensor, weight: Tensor | QuantizedMatrix) -> Tensor:
        """In the shape of `x`."""
        if isinstance(weight, QuantizedMatrix):
            return gradient_of_quantized_input(grad, x, weight)
        return gradient_of_linear_input(grad, x, weight)

    def gradients_through_input(
        self, grad: Tensor, x: QuantizedMatrix, weight: QuantizedMatrix
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """By the input before quantization, its logarithmic scale parameter and its offset."""
        return gradients_through_input(grad, x, weight)

    def gradient_of_bias(self, grad: Tensor) -> Tensor:
        """One number for an output feature, float32."""
        return gradient_of_bias(grad)


@dataclass(frozen=True)
class Conv2d:
    """`torch.nn.functional.conv2d`: of x, (batch, in_channels, height, width); the attributes are its arguments."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, out_channels, height', width')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def operand_of_weight_gradient(self, grad: Tensor, x: QuantizedMatrix, dtype: torch.dtype) -> Tensor:
        """The input as `gradients_of_parameters` takes it: quantized."""
        return fused_quantize(*x, dtype)

    def gradients_of_parameters(
        self, grad: Tensor, x: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """In the shape of `weight`, from `grad`, that of the result; and of the bias, float32."""
        if self.takes_patches(x, weight):
            by_weight = gradient_of_linear_weight(grad.permute(0, 2, 3, 1), self.patches(x, weight), weight.flatten(1))
            by_weight = by_weight.view(weight.shape)
        else:
            by_weight = self._gradients(grad, x, weight, [False, True, False])[1]
        return by_weight, self.gradient_of_bias(grad) if with_bias else None

    def gradient_of_input(self, grad: Tensor, x: Tensor, weight: Tensor | QuantizedMatrix) -> Tensor:
        """In the shape of `x`."""
        if isinstance(weight, QuantizedMatrix):
            weight = fused_quantize(*weight, grad.dtype)
        if not self.takes_patches(x, weight):
            return self._gradients(grad, x, weight, [True, False, False])[0]
        # Several times as fast as the general case.
        patches = product_of_rows(grad.permute(0, 2, 3, 1), weight.flatten(1))
        patches = patches.unflatten(-1, weight.shape[1:])  # (batch, rows, columns, channels, height, width)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def gradients_through_input(
        self, grad: Tensor, x: QuantizedMatrix, weight: QuantizedMatrix
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """By the input before quantization, its logarithmic scale parameter and its offset."""
        return fused_gradients(self.gradient_of_input(grad, x.values, weight), *x)

    def takes_patches(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the input is divided into patches that do not overlap, so that this is a product of matrices."""
        kernel = tuple(weight.shape[2:])
        simple = self.groups == 1 and not any(self.padding) and all(step == 1 for step in self.dilation)
        return simple and self.stride == kernel and all(n % k == 0 for n, k in zip(x.shape[2:], kernel, strict=True))

    def patches(self, x: Tensor, weight: Tensor) -> Tensor:
        """The input as a matrix of patches, (batch, rows, columns, numbers of a patch)."""
        x = x.unflatten(3, (-1, weight.shape[3])).unflatten(2, (-1, weight.shape[2]))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def gradient_of_bias(self, grad: Tensor) -> Tensor:
        """One number for an output feature, float32."""
        return grad.sum((0, 2, 3), dtype=torch.float32)

    def _gradients(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor]:
        geometry = list(self.stride), list(self.padding), list(self.dilation), False, [0, 0], self.groups
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, wanted)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which a matrix product takes `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
