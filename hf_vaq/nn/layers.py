"""Quantized layers in training form: stock layers whose weight and input pass through quantizers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .activation_quantizer import ActivationQuantizer
from .packed import PackedActivationQuantizer
from .weight_quantizer import WeightQuantizer


class QuantizedOperands(nn.Module):
    """Mixed into a layer: quantizers of its weight and of its input, each of which may be absent."""

    weight: Tensor
    weight_quantizer: WeightQuantizer | None
    input_quantizer: ActivationQuantizer | PackedActivationQuantizer | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_module("weight_quantizer", None)
        self.register_module("input_quantizer", None)

    def quantized_weight(self) -> Tensor:
        """The weight after its quantizer."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input after its quantizer."""
        return x if self.input_quantizer is None else self.input_quantizer(x)


class QuantLinear(QuantizedOperands, nn.Linear):
    """A linear layer on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


class QuantConv2d(QuantizedOperands, nn.Conv2d):
    """A convolution on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        return self._conv_forward(self.quantized_input(x), self.quantized_weight(), self.bias)
