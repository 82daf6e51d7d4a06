"""The bin regularizer of a model, and the schedule of its weight."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..nn import weight_quantized_modules
from ..numerics.bins import bin_regularizer


def model_bin_regularizer(model: nn.Module) -> Tensor:
    """`bin_regularizer` over all fake-quantized weights of `model`; zero if it has none."""
    weights, scales, bits = [], [], []
    fused = False
    for _, module in weight_quantized_modules(model):
        quantizer = module.weight_quantizer
        fused = fused or quantizer.fused
        weights.append(quantizer.grouped(module.weight))
        scales.append(quantizer.scale(module.weight))
        bits.append(quantizer.bits)
    return bin_regularizer(weights, scales, bits, fused)


def cosine_ramp(progress: float, end_value: float, start: float = 0.25) -> float:
    """Weight lambda of the regularizer: 0 until `start`, then along half a cosine to `end_value`.

    lambda = end_value (1 - cos(pi (progress - start) / (1 - start))) / 2, the schedule of the published code of
    variation-aware quantization.

    Args:
        progress: fraction of the training steps done, 0 to 1; beyond 1 counts as 1.
        end_value: lambda at the end.
        start: fraction at which lambda begins to rise, from 0 to below 1.
    """
    position = (min(progress, 1.0) - start) / (1 - start)
    return end_value * (1 - math.cos(math.pi * position)) / 2 if position > 0 else 0.0
