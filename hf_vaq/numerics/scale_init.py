"""First values of scales: alternating least squares for weights, magnitude statistics for activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .levels import integer_range

# A group of zeros quantizes to zero at any scale; this one lets later training move it in small steps.
SCALE_OF_ZEROS = 1e-3


# Clipping limits tried before the alternation, as shares of the largest value: steps of about 20 %.
CLIPPING_LADDER = tuple(0.8**i for i in range(16))


@torch.no_grad()
def least_squares_scale(groups: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """The scale that minimises ||w - w_q||^2 in each group, see `least_squares_fit`.

    Args:
        groups: values, (groups, elements).
        bits: 2 to 8.
        signed: range of the codes.

    Returns:
        Positive float32 scales, (groups,).
    """
    return least_squares_fit(groups, bits, signed=signed).scale


@dataclass
class LeastSquaresFit:
    """What alternating least squares arrived at, one entry a group.

    Attributes:
        scale: positive, float32, (groups,).
        offset: float32, (groups,); zero for a symmetric quantizer.
        error: weighted squared error, (groups,).
    """

    scale: Tensor
    offset: Tensor
    error: Tensor

    def better(self, other: LeastSquaresFit) -> LeastSquaresFit:
        """Group by group the fit with the smaller error."""
        keep = self.error <= other.error
        pairs = ((self.scale, other.scale), (self.offset, other.offset), (self.error, other.error))
        return LeastSquaresFit(*(torch.where(keep, mine, theirs) for mine, theirs in pairs))


@torch.no_grad()
def alternating_least_squares(
    groups: Tensor,
    bits: int,
    start: Tensor,
    *,
    signed: bool = True,
    start_offset: Tensor | None = None,
    weights: Tensor | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> LeastSquaresFit:
    """Fit x ~ s c + o to integer codes c by turns, until no scale changes by more than `tolerance` of itself.

    In turn the codes that are best for scale and offset, c = round(clamp((x - o) / s, Qn, Qp)), and the scale and
    offset that are best for the codes: s = <x, c> / <c, c> without offset, the regression line of x on c with one.
    Neither step can raise the error.

    Args:
        groups: values x, (groups, elements).
        bits: 2 to 8.
        start: first scales, (groups,).
        signed: range of the codes.
        start_offset: first offsets, (groups,); if not given the offset stays zero.
        weights: how often each value counts, as `groups`; once if not given.
        max_iterations: bound on the number of alternations.
        tolerance: largest relative change at which to stop.
    """
    qn, qp = integer_range(bits, signed)
    values = groups.float()
    scale = torch.where(start > 0, start.float(), SCALE_OF_ZEROS)
    offset = torch.zeros_like(scale) if start_offset is None else start_offset.float()

    def mean(x: Tensor) -> Tensor:
        # torch sums in pairs: float32 is exact to far below the tolerance, at a fraction of the time of float64.
        return x.mean(1) if weights is None else (x * weights).sum(1) / weights.sum(1)

    def codes() -> Tensor:
        return ((values - offset[:, None]) / scale[:, None]).clamp_(qn, qp).round_()

    for _ in range(max_iterations):
        c = codes()
        if start_offset is None:
            best = mean(values * c) / mean(c * c)
        else:
            mean_value, mean_code = mean(values), mean(c)
            c -= mean_code[:, None]
            best = mean((values - mean_value[:, None]) * c) / mean(c * c)
        # Where all codes are equal no better scale is to be had from them.
        valid = torch.isfinite(best) & (best > 0)
        best = torch.where(valid, best, scale)
        if start_offset is not None:
            offset = torch.where(valid, mean_value - best * mean_code, offset)
        change = ((best - scale).abs() / scale).max()
        scale = best
        if change < tolerance:
            break
    error = mean((codes() * scale[:, None] + offset[:, None] - values) ** 2)
    return LeastSquaresFit(scale, offset, error)


@torch.no_grad()
def least_squares_fit(
    groups: Tensor, bits: int, *, signed: bool = True, with_offset: bool = False, weights: Tensor | None = None
) -> LeastSquaresFit:
    """Scale and offset of least squared error for values, or for a histogram of them.

    Alternating least squares finds the optimum next to its start. Transformers have few, huge outliers, and whether
    it pays to clip them depends on the bits: so the alternation starts from the best of a ladder of clipping limits,
    the largest value among them.

    Args:
        groups: values, (groups, elements).
        bits: 2 to 8.
        signed: range of the codes.
        with_offset: whether the zero level is free; else it is zero.
        weights: how often each value counts, as `groups`; once if not given.
    """
    _, qp = integer_range(bits, signed)
    seen = groups if weights is None else groups.where(weights > 0, groups.new_full((), torch.nan))
    low, high = _nan_min(seen), _nan_max(seen)
    start_offset = low if with_offset else None
    full_range = high / qp - low / qp if with_offset else torch.maximum(high, -low) / qp
    best: LeastSquaresFit | None = None
    for share in CLIPPING_LADDER:
        fit = alternating_least_squares(
            groups,
            bits,
            share * full_range,
            signed=signed,
            start_offset=start_offset,
            weights=weights,
            max_iterations=0,
        )
        best = fit if best is None else best.better(fit)
    return alternating_least_squares(
        groups, bits, best.scale, signed=signed, start_offset=start_offset, weights=weights
    )


def _nan_min(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=torch.inf).amin(1)


def _nan_max(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=-torch.inf).amax(1)


def magnitude_scale(mean_magnitude: Tensor, qp: int) -> Tensor:
    """LSQ's first activation scale, 2 mean|x| / sqrt(Qp) (section 2.1 there); positive also where all x are zero."""
    scale = 2 * mean_magnitude.float() / qp**0.5
    return torch.where(scale > 0, scale, SCALE_OF_ZEROS)


def statistics_scale(groups: Tensor, bits: int) -> Tensor:
    """Weight scale as a statistic, not learned: the clipping range is twice the mean magnitude.

    s = 2 mean|w| / 2^(b-1), after StatsQ of OFQ (Liu et al., ICML 2023, section 4.1), on this library's integer grid.

    Args:
        groups: weights, (groups, elements).
        bits: 2 to 8.

    Returns:
        Positive float32 scales, (groups,), without gradient.
    """
    qn, _ = integer_range(bits)
    scale = 2 * groups.detach().abs().mean(1, dtype=torch.float32) / -qn
    return torch.where(scale > 0, scale, SCALE_OF_ZEROS)
