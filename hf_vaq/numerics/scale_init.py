"""First values of scales: alternating least squares for weights, magnitude statistics for activations."""

from __future__ import annotations

import torch
from torch import Tensor

from .levels import integer_range

# A group of zeros quantizes to zero at any scale; this one lets later training move it in small steps.
SCALE_OF_ZEROS = 1e-3


@torch.no_grad()
def least_squares_scale(
    groups: Tensor,
    bits: int,
    *,
    signed: bool = True,
    start: Tensor | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> Tensor:
    """The scale that minimises ||w - w_q||^2 in each group, by alternating least squares.

    In turn the codes that are best for the scale, c = round(clamp(w / s, Qn, Qp)), and the scale that is best for the
    codes, s = <w, c> / <c, c>, until the relative change of every scale is below `tolerance`. Neither step can raise
    the error.

    Args:
        groups: values, (groups, elements).
        bits: 2 to 8.
        signed: range of the codes.
        start: first scales, (groups,); max|w| / Qp if not given.
        max_iterations: bound on the number of alternations.
        tolerance: largest relative change at which to stop.

    Returns:
        Positive float32 scales, (groups,).
    """
    qn, qp = integer_range(bits, signed)
    scale = groups.abs().amax(1).float() / qp if start is None else start.float()
    scale = torch.where(scale > 0, scale, SCALE_OF_ZEROS)
    values = groups.float()
    for _ in range(max_iterations):
        codes = (values / scale[:, None]).clamp_(qn, qp).round_()
        best = _dot(values, codes) / _dot(codes, codes)
        # All codes zero: no better scale is to be had from them.
        best = torch.where(torch.isfinite(best) & (best > 0), best.float(), scale)
        change = ((best - scale).abs() / scale).max()
        scale = best
        if change < tolerance:
            break
    return scale


@torch.no_grad()
def affine_least_squares(
    groups: Tensor,
    bits: int,
    scale: Tensor,
    offset: Tensor,
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Scale and offset that minimise ||x - (s c + o)||^2 over unsigned codes c, by alternating least squares.

    Given the codes, (s, o) is the regression line of x on c.

    Args:
        groups: values, (groups, elements).
        bits: 2 to 8.
        scale: first scales, (groups,).
        offset: first offsets, (groups,).
        max_iterations: bound on the number of alternations.
        tolerance: largest relative change of a scale at which to stop.

    Returns:
        Scales and offsets, float32, (groups,) each.
    """
    _, qp = integer_range(bits, signed=False)
    values = groups.float()
    mean = values.double().mean(1)
    for _ in range(max_iterations):
        codes = ((values - offset[:, None]) / scale[:, None]).clamp_(0, qp).round_()
        mean_code = codes.double().mean(1)
        n = codes.shape[1]
        slope = (_dot(values, codes) - n * mean * mean_code) / (_dot(codes, codes) - n * mean_code**2)
        valid = torch.isfinite(slope) & (slope > 0)
        best = torch.where(valid, slope.float(), scale)
        offset = torch.where(valid, (mean - slope * mean_code).float(), offset)
        change = ((best - scale).abs() / scale).max()
        scale = best
        if change < tolerance:
            break
    return scale, offset


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


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # Millions of products: float64 keeps the alternation from stalling above its tolerance.
    return torch.linalg.vecdot(a.double(), b.double(), dim=1)
