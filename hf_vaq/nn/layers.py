"""Quantized layers in training form: stock layers whose weight and input pass through quantizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import bfloat16, coded, fused_layers, traced
from .activation_quantizer import ActivationQuantizer
from .fused_layers import Scaled
from .fusion import is_traced, is_untouched, may_be_replaced, may_fuse
from .notes import note, noted
from .operations import Conv2d, autocast_dtype
from .packed import PackedActivationQuantizer
from .recomputed import traced_gelu_argument
from .weight_quantizer import WeightQuantizer

ORIGIN = "_quantized_from"
"""Attribute of a tensor of quantized values that several layers read: its `fused_layers.Origin`."""


def quantize_for_layers(x: Tensor, quantizer: ActivationQuantizer | PackedActivationQuantizer) -> Tensor:
    """Quantize `x` once, for several layers. They are told where it comes from, so that none has to keep it."""
    if coded.applies_to(x) and may_be_replaced(quantizer):
        quantized = quantizer(x)
        coded.remember(quantized, quantizer.scaled())
        return quantized
    if not (isinstance(quantizer, ActivationQuantizer) and quantizer.is_fusable() and may_fuse(x)):
        return quantizer(x)
    # Under autocast every layer would convert the values by itself.
    quantized, origin = fused_layers.quantize_for_many(x, quantizer.scaled(), autocast_dtype(x))
    note(quantized, ORIGIN, origin)
    return quantized


class QuantizedOperands(nn.Module):
    """Mixed into a layer: quantizers of its weight and of its input, each of which may be absent."""

    weight: Tensor
    weight_quantizer: WeightQuantizer | None
    input_quantizer: ActivationQuantizer | PackedActivationQuantizer | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_module("weight_quantizer", None)
        self.register_module("input_quantizer", None)
        self.fused = False

    def quantized_weight(self) -> Tensor:
        """The weight after its quantizer."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input after its quantizer."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def is_fusable(self, x: Tensor) -> bool:
        """Whether one function may do the work of this layer and of its quantizers."""
        return (
            self.fused
            and may_fuse(x, self.weight)
            and self.weight_quantizer is not None
            and is_untouched(self.weight_quantizer)
            and (self.input_quantizer is None or self.input_quantizer.is_fusable())
        )

    def is_traced(self, x: Tensor) -> bool:
        """Whether a training step of the whole model is being compiled, in which gradients are computed our way."""
        return torch.is_grad_enabled() and is_traced(x) and is_traced(self.weight)

    def fused_operands(self, x: Tensor) -> dict[str, Any]:
        """The arguments that `fused_layers` takes beside the input."""
        inputs: Any = noted(x, ORIGIN) if self.input_quantizer is None else self.input_quantizer.scaled()
        weights = self.weight_quantizer.scaled(self.weight)
        return {"weight": self.weight, "bias": self.bias, "inputs": inputs, "weights": weights}

    def coded_operands(self, x: Tensor) -> tuple[Scaled, Scaled] | None:
        """The quantizers that `coded` takes; None if it may not do the work of one of them."""
        if self.weight_quantizer is None or not is_untouched(self.weight_quantizer):
            return None
        if self.input_quantizer is None:
            inputs = coded.quantizer_of(x)
        else:
            inputs = self.input_quantizer.scaled() if may_be_replaced(self.input_quantizer) else None
        return None if inputs is None else (inputs, self.weight_quantizer.scaled(self.weight))


class QuantLinear(QuantizedOperands, nn.Linear):
    """A linear layer on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self.is_fusable(x):
            return fused_layers.linear(x, **self.fused_operands(x))
        if not self.is_traced(x):
            return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)
        argument = None if self._forward_pre_hooks else traced_gelu_argument(x)
        if coded.applies_to(x) and (operands := self.coded_operands(x)) is not None:
            x = x if argument is None else coded.gelu(argument)
            return coded.linear(x, self.weight, self.bias, *operands, quantized=self.input_quantizer is None)
        quantize_gelu = None if argument is None else self._gelu_quantizer(argument)
        quantized = self.quantized_input(x) if quantize_gelu is None else quantize_gelu(argument)
        # A hook might change the result in place.
        return traced.linear(quantized, self.quantized_weight(), self.bias, with_terms=is_untouched(self))

    def _gelu_quantizer(self, argument: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What quantizes the GELU of its argument, in a model that is being compiled; None: GELU is to be computed."""
        if not traced.may_replace(self.input_quantizer):
            return None
        scaled = self.input_quantizer.scaled()
        if bfloat16.CONVERTS and bfloat16.applies_to(argument):
            return partial(bfloat16.quantize_gelu, scaled=scaled)
        in_autocast = torch.is_autocast_enabled(argument.device.type)
        return partial(traced.quantize_gelu, scaled=scaled) if in_autocast else None


class QuantConv2d(QuantizedOperands, nn.Conv2d):
    """A convolution on a quantized input with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        if self.padding_mode == "zeros" and isinstance(self.padding, tuple):
            geometry = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
            if self.is_fusable(x):
                return fused_layers.conv2d(x, **self.fused_operands(x), geometry=geometry)
            if self.is_traced(x):
                return self._traced(x, Conv2d(**geometry))
        return self._conv_forward(self.quantized_input(x), self.quantized_weight(), self.bias)

    def _traced(self, x: Tensor, operation: Conv2d) -> Tensor:
        halves = autocast_dtype(x) == torch.bfloat16
        if halves and operation.takes_patches(x, self.weight) and traced.may_replace(self.input_quantizer):
            # Patches are gathered and written once; the compiler would gather them anew wherever it reads them.
            patches = traced.written(operation.patches(x, self.weight))
            patches = traced.quantize(patches, self.input_quantizer.scaled())
            result = traced.linear(patches, self.quantized_weight().flatten(1), self.bias)
            return result.permute(0, 3, 1, 2)
        return traced.conv2d(self.quantized_input(x), self.quantized_weight(), self.bias, operation)
