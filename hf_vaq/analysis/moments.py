"""Statistics of spread and outliers of one tensor, or of a stream of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """How a tensor's values vary.

    Attributes:
        elements: number of values.
        mean_abs: mean magnitude.
        std: standard deviation.
        sdam: standard deviation of the absolute mean, see `Moments`.
        relative_sdam: `sdam / mean_abs`, which does not depend on the unit of the values; 0 where all are zero.
        kurtosis: fourth central moment over the squared variance; 3 for a Gaussian. 0 where all values are equal.
        max_over_std: largest magnitude over standard deviation; 0 where all values are equal.
        head_spread: standard deviation over attention heads of the mean magnitude of a head, over its mean; None for
            a tensor that does not divide into heads.
    """

    elements: int
    mean_abs: float
    std: float
    sdam: float
    relative_sdam: float
    kurtosis: float
    max_over_std: float
    head_spread: float | None = None


class Moments:
    """Sums from which `Spread` follows; memory does not grow with the number of values.

    SDAM is the standard deviation over channels c of the mean magnitude of a channel, std_c(mean_i |x_ci|), the
    channels being the outputs of a weight, or the features of an activation. Source: Liu et al., "How Do Adam and
    Training Strategies Help BNNs Optimization?" (ICML 2021), who take it over the output channels of a convolution;
    "Quantization Variation" (arXiv 2307.00331) compares its mean over the modules of transformers and CNNs.

    Args:
        heads: number of attention heads that the channels divide into, if they do.
    """

    def __init__(self, heads: int | None = None):
        self.heads = heads
        self._count = 0
        self._magnitudes: Tensor | float = 0.0
        self._powers: Tensor | float = 0.0
        self._shift: float | None = None
        self._largest = 0.0

    @property
    def seen(self) -> bool:
        """Whether there were any values yet."""
        return self._count > 0

    @torch.no_grad()
    def update(self, x: Tensor, channel_dim: int) -> None:
        """Take in a tensor, whose dimension `channel_dim` are the channels."""
        x = x.detach().float()
        if self._shift is None:
            self._shift = x.mean().item()
        others = [i for i in range(x.dim()) if i != channel_dim % x.dim()]
        magnitude = x.abs()
        # About a value near the mean: nothing is lost where the mean is far larger than the deviation.
        centred = x - self._shift
        square = centred * centred
        # Sums of float32 values in blocks: float64 for the sums, not for the values, keeps this fast and exact enough.
        powers = [centred.sum(dtype=torch.float64), square.sum(dtype=torch.float64)]
        powers += [(square * centred).sum(dtype=torch.float64), (square * square).sum(dtype=torch.float64)]
        self._powers = self._powers + torch.stack(powers)
        magnitudes = magnitude.sum(others, dtype=torch.float64) if others else magnitude.double()
        self._magnitudes = self._magnitudes + magnitudes
        self._largest = max(self._largest, magnitude.max().item())
        self._count += x.numel()

    def spread(self) -> Spread:
        """The statistics of everything taken in.

        Raises:
            ValueError: nothing was, or values are not finite.
        """
        if not self._count:
            raise ValueError("no values to take statistics of.")
        m1, m2, m3, m4 = (self._powers / self._count).tolist()
        if not torch.isfinite(self._powers).all():
            raise ValueError("values are not finite (NaN or infinity).")
        variance = max(m2 - m1 * m1, 0.0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4
        channels = self._magnitudes / (self._count / len(self._magnitudes))
        mean_abs = channels.mean().item()
        sdam = channels.std(correction=0).item()
        constant = variance <= 1e-12 * mean_abs**2
        head_spread = None
        if self.heads is not None:
            by_head = channels.view(self.heads, -1).mean(1)
            head_spread = _ratio(by_head.std(correction=0).item(), by_head.mean().item())
        return Spread(
            elements=self._count,
            mean_abs=mean_abs,
            std=variance**0.5,
            sdam=sdam,
            relative_sdam=_ratio(sdam, mean_abs),
            kurtosis=0.0 if constant else fourth / variance**2,
            max_over_std=0.0 if constant else self._largest / variance**0.5,
            head_spread=head_spread,
        )


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
