"""The bin regularizer of one weight in three passes over memory: statistics, value, gradient.

The definition and the order of the steps are those of `bins.bin_regularizer`; sums are taken in float32, of distances
to the level instead of the weights themselves, which keeps their digits. Every level is compared with every weight, so
that nothing is scattered: that pays up to `MAX_BITS`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled import CompiledKernel
from .levels import integer_range

MAX_BITS = 4
"""Bits up to which comparing with every level is faster than sorting weights into bins."""


def fused_bin_regularizer(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The term of one weight in `bins.bin_regularizer`, with its gradient.

    Args:
        weight: latent, (groups, weights per group), float32.
        scale: positive, (groups,).
        bits: 2 to `MAX_BITS`.

    Returns:
        A scalar.
    """
    return _FusedBinRegularizer.apply(weight, scale.detach(), bits)


class _FusedBinRegularizer(torch.autograd.Function):
    """Keeps the weight and, per bin, two numbers."""

    @staticmethod
    def forward(ctx, weight, scale, bits):
        scale, first = scale.view(-1, 1), integer_range(bits)[0]
        counts, sums = _statistics((weight.detach(), scale), (first, 1 << bits))
        ctx.save_for_backward(weight, scale, counts, sums)
        ctx.bits = bits
        return _value((weight.detach(), scale, counts, sums), (first, 1 << bits))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, scale, counts, sums = ctx.saved_tensors
        options = integer_range(ctx.bits)[0], 1 << ctx.bits
        return _gradient((weight.detach(), scale, counts, sums, grad), options), None, None


def _positions(weight: Tensor, scale: Tensor, first: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, distance of the clipped weight to its level, distance of the weight itself."""
    position = torch.clamp(weight / scale, first, first + levels - 1)
    codes = position.round()
    return codes - first, (position - codes) * scale, weight - codes * scale


def _statistics_function(weight, scale, first, levels):
    bins, _, distance = _positions(weight, scale, first, levels)
    members = [bins == level for level in range(levels)]
    counts = torch.stack([member.to(torch.float32).sum(1) for member in members], 1)
    return counts, torch.stack([torch.where(member, distance, 0.0).sum(1) for member in members], 1)


def _deviations(weight, scale, counts, sums, first, levels):
    """Clipped distance, distance to the mean of the bin, and the factor of its square."""
    bins, clipped, distance = _positions(weight, scale, first, levels)
    means = sums / counts.clamp_min(1.0)
    factors = torch.where(counts >= 2, 1 / ((counts - 1).clamp_min(1.0) * weight.shape[0]), 0.0)
    mean, factor = torch.zeros_like(distance), torch.zeros_like(distance)
    for level in range(levels):
        member = bins == level
        mean = torch.where(member, means[:, level : level + 1], mean)
        factor = torch.where(member, factors[:, level : level + 1], factor)
    return clipped, distance - mean, factor


def _value_function(weight, scale, counts, sums, first, levels):
    clipped, deviation, factor = _deviations(weight, scale, counts, sums, first, levels)
    return (clipped * clipped).sum() / weight.numel() + (deviation * deviation * factor).sum()


def _gradient_function(weight, scale, counts, sums, grad, first, levels):
    clipped, deviation, factor = _deviations(weight, scale, counts, sums, first, levels)
    return (clipped / weight.numel() + deviation * factor) * (2 * grad)


_statistics = CompiledKernel(_statistics_function)
_value = CompiledKernel(_value_function)
_gradient = CompiledKernel(_gradient_function)
