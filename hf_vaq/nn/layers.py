"""Quantized layers in training form: stock layers whose weight and input pass through quantizers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .activation_quantizer import ActivationQuantizer
from .packed import PackedActivationQuantizer
from .weight_quantizer import WeightQuantizer

InputQuantizer = ActivationQuantizer | PackedActivationQuantizer


class QuantLinear(nn.Linear):
    """A linear layer on a quantized input with a quantized weight; either quantizer may be absent."""

    weight_quantizer: WeightQuantizer | None
    input_quantizer: InputQuantizer | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_module("weight_quantizer", None)
        self.register_module("input_quantizer", None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(_quantized(self.input_quantizer, x), _quantized(self.weight_quantizer, self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """A convolution on a quantized input with a quantized weight; either quantizer may be absent."""

    weight_quantizer: WeightQuantizer | None
    input_quantizer: InputQuantizer | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_module("weight_quantizer", None)
        self.register_module("input_quantizer", None)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        weight = _quantized(self.weight_quantizer, self.weight)
        return self._conv_forward(_quantized(self.input_quantizer, x), weight, self.bias)


def _quantized(quantizer: nn.Module | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)
