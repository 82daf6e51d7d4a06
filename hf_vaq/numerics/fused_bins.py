"""The bin regularizer of one weight in two passes over memory: statistics of the bins, then value and gradient.

The definition and the order of the steps are those of `bins.bin_regularizer`; sums are taken in float32, of distances
to the level instead of the weights themselves, which keeps their digits. For the statistics every level is compared
with every weight, so that nothing is scattered: that pays up to `MAX_BITS`.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled import CompiledKernel
from .levels import integer_range

MAX_BITS = 4
"""Bits up to which comparing with every level is faster than sorting weights into bins."""
COLUMNS = 1024
"""A weight is summed in this many columns, or in a divisor of it that divides the number of weights."""


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
    """Computes value and gradient together; keeps the gradient, which is what the weight's own becomes."""

    @staticmethod
    def forward(ctx, weight, scale, bits):
        weight, scale, levels = weight.detach(), scale.view(-1, 1), (integer_range(bits)[0], 1 << bits)
        table, columns = _as_table(weight)
        statistics = _statistics((table, scale.unsqueeze(2)), (*levels, columns))
        if not ctx.needs_input_grad[0]:
            return _value((weight, scale, *statistics), levels)
        value, gradient = _value_and_gradient((weight, scale, *statistics), levels)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


def _as_table(weight: Tensor) -> tuple[Tensor, bool]:
    """(groups, rows, columns), and whether columns are summed first: vectors then stay vectors until the very end."""
    groups, numel = weight.shape
    columns = gcd(numel, COLUMNS)
    if columns < 64 or numel < 16 * columns:
        return weight.reshape(groups, 1, numel), False
    return weight.reshape(groups, numel // columns, columns), True


def _positions(weight: Tensor, scale: Tensor, first: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, distance of the clipped weight to its level, distance of the weight itself."""
    position = torch.clamp(weight / scale, first, first + levels - 1)
    codes = position.round()
    return codes - first, (position - codes) * scale, weight - codes * scale


def _statistics_function(weight, scale, first, levels, columns):
    """Members of each bin and the sum of their distances to the level, (groups, levels)."""
    bins, _, distance = _positions(weight, scale, first, levels)
    members = [bins == level for level in range(levels)]
    dim = 1 if columns else 2
    counts = torch.stack([member.to(torch.float32).sum(dim) for member in members], 1)
    sums = torch.stack([torch.where(member, distance, 0.0).sum(dim) for member in members], 1)
    return counts.sum(2), sums.sum(2)


def _deviations(weight, scale, counts, sums, first, levels):
    """Clipped distance, distance to the mean of the bin, and the factor of its square."""
    bins, clipped, distance = _positions(weight, scale, first, levels)
    means = sums / counts.clamp_min(1.0)
    factors = torch.where(counts >= 2, 1 / ((counts - 1).clamp_min(1.0) * weight.shape[0]), 0.0)
    # NaN has no code. It may fall in any bin: the value then is NaN, as it must be.
    index = bins.nan_to_num(0.0).to(torch.int64)
    return clipped, distance - means.gather(1, index), factors.gather(1, index)


def _value_function(weight, scale, counts, sums, first, levels):
    clipped, deviation, factor = _deviations(weight, scale, counts, sums, first, levels)
    return (clipped * clipped).sum() / weight.numel() + (deviation * deviation * factor).sum()


def _value_and_gradient_function(weight, scale, counts, sums, first, levels):
    clipped, deviation, factor = _deviations(weight, scale, counts, sums, first, levels)
    value = (clipped * clipped).sum() / weight.numel() + (deviation * deviation * factor).sum()
    return value, (clipped / weight.numel() + deviation * factor) * 2


_statistics = CompiledKernel(_statistics_function)
_value = CompiledKernel(_value_function)
_value_and_gradient = CompiledKernel(_value_and_gradient_function)
