"""The bin regularizer of a model, and the schedule of its weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..nn import weight_quantized_modules
from ..numerics import native
from ..numerics.bins import bin_regularizer
from .latent_weights import latent_weights


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


def add_regularizer_gradient(model: nn.Module, factor: float) -> Tensor:
    """Add `factor` times the gradient of `model_bin_regularizer` to the gradients of the weights, after backward.

    In the loss the regularizer would have a gradient of the size of all weights at hand while the activations are
    still there, and the backward pass would take two more passes over it.

    Returns:
        The regularizer, without `factor`.
    """
    modules = [module for _, module in weight_quantized_modules(model)]
    trained = [weight for module in modules if (weight := module.weight).requires_grad]
    for weight in trained:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    quantized = latent_weights(modules)
    if quantized is not None and native.can_run([weight.grad for weight in trained]):
        gradients = [module.weight.grad if module.weight.requires_grad else None for module in modules]
        return native.bin_regularizer(quantized, gradients, factor)
    with torch.enable_grad():
        value = model_bin_regularizer(model)
    if not trained:
        return value.detach()
    for weight, gradient in zip(trained, torch.autograd.grad(value * factor, trained), strict=True):
        weight.grad += gradient
    return value.detach()


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
