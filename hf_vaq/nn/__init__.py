"""Quantized modules: they know no transformers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .activation_quantizer import ActivationQuantizer, UncalibratedError
from .activation_statistics import ActivationStatistics
from .layers import QuantConv2d, QuantLinear
from .packed import PackedActivationQuantizer, PackedConv2d, PackedLinear, PackedWeight
from .weight_quantizer import WeightQuantizer

__all__ = [
    "ActivationQuantizer",
    "ActivationStatistics",
    "PackedActivationQuantizer",
    "PackedConv2d",
    "PackedLinear",
    "PackedWeight",
    "QuantConv2d",
    "QuantLinear",
    "UncalibratedError",
    "WeightQuantizer",
    "activation_quantizers",
    "quantizer_parameter_names",
    "weight_quantized_modules",
]


def weight_quantized_modules(model: nn.Module) -> Iterator[tuple[str, QuantLinear | QuantConv2d]]:
    """Names and layers of `model` whose latent weight is fake-quantized."""
    for name, module in model.named_modules():
        # Asked at every step: where an attribute is missing, getattr of a module takes long.
        if isinstance(module._modules.get("weight_quantizer"), WeightQuantizer):
            yield name, module


def activation_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Names and activation quantizers of `model`, in training form."""
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module


def quantizer_parameter_names(model: nn.Module) -> set[str]:
    """Names of all scale and offset parameters of `model`."""
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, WeightQuantizer | ActivationQuantizer)
        for parameter, _ in module.named_parameters(recurse=False)
    }
