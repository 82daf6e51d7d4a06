"""The bin regularizer of one weight in two passes over memory: moments of the bins, which give the value; gradient.

The definition and the order of the steps are those of `bins.bin_regularizer`; sums are taken in float32, of distances
to the level instead of the weights themselves, which keeps their digits. For the moments every level is compared
with every weight, so that nothing is scattered: that pays up to `MAX_BITS`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled import CompiledKernel
from .levels import integer_range

MAX_BITS = 4
"""Bits up to which comparing with every level is faster than sorting weights into bins."""
COLUMNS = 192, 320, 448, 64
"""A weight is summed in so many columns, the first of these numbers that divides its size. Multiples of a vector, but
not large powers of two: rows would fall on the same lines of the cache."""


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
        scale, levels = scale.view(-1, 1), (integer_range(bits)[0], 1 << bits)
        table, columns = _as_table(weight.detach())
        value, means, factors = _moments((table, scale), (*levels, columns))
        ctx.save_for_backward(weight, scale, means, factors)
        ctx.levels = levels
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, scale, means, factors = ctx.saved_tensors
        return _gradient((weight.detach(), scale, means, factors, grad), ctx.levels), None, None


def _as_table(weight: Tensor) -> tuple[Tensor, bool]:
    """A weight with one scale as (rows, columns), to be summed over the rows; others as they are."""
    groups, numel = weight.shape
    columns = next((columns for columns in COLUMNS if numel % columns == 0), numel)
    if groups > 1 or numel < 16 * columns:
        return weight, False
    return weight.reshape(numel // columns, columns), True


def _positions(weight: Tensor, scale: Tensor, first: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, distance of the clipped weight to its level, distance of the weight itself."""
    position = torch.clamp(weight / scale, first, first + levels - 1)
    codes = position.round()
    return codes - first, (position - codes) * scale, weight - codes * scale


def _moments_function(weight, scale, first, levels, columns):
    """The value; per bin the mean distance to its level and the factor of a squared deviation, (groups, levels)."""
    bins, clipped, distance = _positions(weight, scale, first, levels)
    members = [bins == level for level in range(levels)]
    dim = 0 if columns else 1  # over the rows first: vectors then stay vectors until the very end

    def by_bin(values):
        parts = torch.stack([torch.where(member, values, 0.0).sum(dim) for member in members], dim)
        return parts.sum(1).view(1, -1) if columns else parts

    counts, sums, squares = by_bin(1.0), by_bin(distance), by_bin(distance * distance)
    means = sums / counts.clamp_min(1.0)
    groups = scale.shape[0]
    factors = torch.where(counts >= 2, 1 / ((counts - 1).clamp_min(1.0) * groups), 0.0)
    value = (clipped * clipped).sum() / weight.numel() + ((squares - sums * means) * factors).sum()
    return value, means, factors


def _gradient_function(weight, scale, means, factors, grad, first, levels):
    bins, clipped, distance = _positions(weight, scale, first, levels)
    # NaN has no code. It may fall in any bin: the gradient then is NaN, as it must be.
    index = bins.nan_to_num(0.0).to(torch.int64)
    deviation = distance - means.gather(1, index)
    return (clipped / weight.numel() + deviation * factors.gather(1, index)) * (2 * grad)


_moments = CompiledKernel(_moments_function)
_gradient = CompiledKernel(_gradient_function)
