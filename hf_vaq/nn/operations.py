"""The operations of quantized layers, and their gradients by parts: a backward pass wants them one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics.products import gradient_of_linear_input, gradient_of_linear_weight, product_of_rows


@dataclass(frozen=True)
class Linear:
    """`torch.nn.functional.linear`: of x, (..., in_features), with a weight, (out_features, in_features)."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., out_features)."""
        return F.linear(x, weight, bias)

    def gradient_of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """In the shape of `weight`, from `grad`, that of the result."""
        return gradient_of_linear_weight(grad, x, weight)

    def gradient_of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """In the shape of `x`."""
        return gradient_of_linear_input(grad, x, weight)

    def gradient_of_bias(self, grad: Tensor) -> Tensor:
        """One number for an output feature, float32."""
        return grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32)


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

    def gradient_of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """In the shape of `weight`, from `grad`, that of the result."""
        return self._gradients(grad, x, weight, [False, True, False])[1]

    def gradient_of_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """In the shape of `x`."""
        if not self._is_patches(x, weight):
            return self._gradients(grad, x, weight, [True, False, False])[0]
        # Patches that do not overlap: a matrix product, several times as fast as the general case.
        patches = product_of_rows(grad.permute(0, 2, 3, 1), weight.flatten(1))
        patches = patches.unflatten(-1, weight.shape[1:])  # (batch, rows, columns, channels, height, width)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def _is_patches(self, x: Tensor, weight: Tensor) -> bool:
        kernel = tuple(weight.shape[2:])
        simple = self.groups == 1 and not any(self.padding) and all(step == 1 for step in self.dilation)
        return simple and self.stride == kernel and all(n % k == 0 for n, k in zip(x.shape[2:], kernel, strict=True))

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
