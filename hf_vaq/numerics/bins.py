"""The variation-aware bin regularizer: it pulls latent weights towards the quantization level of their bin.

Source: "Quantization Variation" (arXiv 2307.00331, TMLR 2024), the oscillation-aware bin regularization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native
from .groups import ScaleGroups
from .levels import integer_range
from .native import LatentWeight

CPU_BLOCK = 1 << 18
"""Weights handled at once on the CPU: their intermediate values then stay in the cache (twice as fast)."""


def bin_regularizer(
    weights: Sequence[Tensor], scales: Sequence[Tensor], bits: Sequence[int], fused: bool = False
) -> Tensor:
    """Sum over tensors of mean((w_clip - w_q)^2) + sum over bins of the variance of the weights in that bin.

    Per tensor, with s the scale, v = clamp(w / s, Qn, Qp), w_clip = v s and w_q = round(v) s:

    - the first term is the mean, over the tensor, of the squared distance to the level;
    - a bin is the set of weights of one scale group that have the same code; each bin of at least two weights adds its
      unbiased variance, others add nothing. The variance is that of the unclipped weights.

    w_q and s are constants of the regularizer, so the gradient reaches the weights only:
    2 (w_clip - w_q) / numel + 2 (w - mean of its bin) / ((members of its bin - 1) groups).

    A tensor with several scale groups (heads, channels) has one set of bins per group. The bin term is averaged, not
    summed, over the groups: summed it would grow with their number, and the weight lambda of the regularizer would
    have to be searched again for every granularity. The first term is a mean over groups already.

    All tensors are handled in one pass over their concatenated values (on the CPU in blocks of whole tensors of about
    `CPU_BLOCK` weights). Sums are kept in float64 (float32 on MPS, which has none) and the variance is taken in two
    passes, so that bins of millions of weights lose no digits. On the CPU the result is the same in every run.

    Args:
        weights: latent weights per tensor, (groups, weights per group); other numbers for every tensor are fine.
        scales: positive scales per tensor, (groups,).
        bits: bit-width per tensor, 2 to 8; codes are signed.
        fused: whether compiled kernels may compute it, see `native`: faster, and equal up to rounding.

    Returns:
        The regularizer, a scalar in the type of the weights (float32 at least), zero if there are no tensors.

    Raises:
        ValueError: if the three sequences differ in length, or a weight and its scales in number of groups.
    """
    if not len(weights) == len(scales) == len(bits):
        raise ValueError(
            f"weights, scales and bits differ in length: {len(weights)}, {len(scales)} and {len(bits)};"
            " expected one scale tensor and one bit-width per weight tensor."
        )
    for i, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
        if weight.dim() != 2 or scale.shape != weight.shape[:1] or weight.shape[1] == 0:
            raise ValueError(
                f"weights[{i}] of shape {tuple(weight.shape)} with scales[{i}] of shape {tuple(scale.shape)}:"
                " expected (groups, weights per group) with (groups,)."
            )
    if not weights:
        return torch.zeros(())
    if fused and native.can_run(rows := [weight.detach().contiguous() for weight in weights]):
        quantized = [
            LatentWeight(row, ScaleGroups(len(row)), scale.detach(), b)
            for row, scale, b in zip(rows, scales, bits, strict=True)
        ]
        return _NativeBinRegularizer.apply(quantized, *weights)
    limit = CPU_BLOCK if weights[0].device.type == "cpu" else None
    terms = []
    for block in _blocks([weight.numel() for weight in weights], limit):
        scales_of_block = [scales[i].detach() for i in block]
        terms.append(_BinRegularizer.apply(scales_of_block, [bits[i] for i in block], *[weights[i] for i in block]))
    return torch.stack(terms).sum()


def _blocks(sizes: list[int], limit: int | None) -> list[list[int]]:
    """Consecutive indices in blocks whose sizes add up to at most `limit`, or that are one tensor."""
    blocks: list[list[int]] = [[]]
    total = 0
    for i, size in enumerate(sizes):
        if limit is not None and blocks[-1] and total + size > limit:
            blocks.append([])
            total = 0
        blocks[-1].append(i)
        total += size
    return blocks


class _NativeBinRegularizer(torch.autograd.Function):
    """Keeps nothing; the gradient is computed from the weights again."""

    @staticmethod
    def forward(ctx, quantized, *weights):
        ctx.quantized = quantized
        return native.bin_regularizer(quantized)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradients = [torch.zeros_like(weight.values) for weight in ctx.quantized]
        native.bin_regularizer(ctx.quantized, gradients, grad.item())
        return None, *gradients


class _BinRegularizer(torch.autograd.Function):
    """Computes value and gradient together; keeps nothing but the gradient, one number per weight."""

    @staticmethod
    def forward(ctx, scales, bits, *weights):
        flat = torch.cat([weight.reshape(-1) for weight in weights])
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        groups = _Groups(scales, bits, [weight.shape[1] for weight in weights], flat.dtype)
        index = groups.index
        scale = groups.scale.index_select(0, index)
        position = (flat / scale).clamp_(groups.qn.index_select(0, index), groups.qp.index_select(0, index))
        codes = position.round()
        distance = position.sub_(codes).mul_(scale)
        # NaN has no code. It may fall in any bin of its own group: the value then is NaN, as it must be.
        bins = codes.nan_to_num_(0.0).long().add_(groups.first_bin.index_select(0, index))
        share = groups.numel_share.index_select(0, index)
        value = (distance * distance).mul_(share).sum(dtype=groups.sum_dtype)

        count = torch.bincount(bins, minlength=groups.bins).to(groups.sum_dtype)
        zeros = torch.zeros_like(count)
        mean = zeros.index_add(0, bins, flat.to(groups.sum_dtype)) / count.clamp(min=1)
        deviation = flat - mean.to(flat.dtype).index_select(0, bins)
        squares = zeros.index_add(0, bins, (deviation * deviation).to(groups.sum_dtype))
        factor = torch.where(count >= 2, groups.bin_share / (count - 1), 0.0)
        value = (value + squares @ factor).to(flat.dtype)

        if any(ctx.needs_input_grad):
            gradient = distance.mul_(share).add_(deviation.mul_(factor.to(flat.dtype).index_select(0, bins))).mul_(2)
            ctx.save_for_backward(gradient)
            ctx.like = [(weight.shape, weight.dtype) for weight in weights]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        parts = (gradient * grad).split([shape.numel() for shape, _ in ctx.like])
        return None, None, *[part.view(s).to(d) for part, (s, d) in zip(parts, ctx.like, strict=True)]


class _Groups:
    """One entry per scale group of all tensors, in order, and `index`: the group of every concatenated weight."""

    def __init__(self, scales, bits, sizes, dtype):
        device = scales[0].device
        self.sum_dtype = torch.float64 if device.type != "mps" else torch.float32
        self.scale = torch.cat(scales).to(dtype)
        counts = [scale.numel() for scale in scales]
        ranges = [integer_range(b) for b in bits]
        levels = [qp - qn + 1 for qn, qp in ranges]

        def per_group(values, dtype):
            values = torch.tensor(values, dtype=dtype, device=device)
            return values.repeat_interleave(repeats, output_size=sum(counts))

        repeats = torch.tensor(counts, device=device)
        self.qn = per_group([qn for qn, _ in ranges], dtype)
        self.qp = per_group([qp for _, qp in ranges], dtype)
        self.numel_share = per_group([1 / (n * size) for n, size in zip(counts, sizes, strict=True)], dtype)
        group_levels = per_group(levels, torch.long)
        self.first_bin = group_levels.cumsum(0) - group_levels - self.qn.long()
        self.bins = sum(n * m for n, m in zip(counts, levels, strict=True))
        self.bin_share = per_group([1 / n for n in counts], self.sum_dtype).repeat_interleave(
            group_levels, output_size=self.bins
        )
        group = torch.arange(sum(counts), device=device)
        self.index = group.repeat_interleave(
            per_group(sizes, torch.long), output_size=sum(n * size for n, size in zip(counts, sizes, strict=True))
        )
