"""What calibration keeps of the activations it sees: a histogram."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics.groups import ScaleGroups
from ..numerics.scale_init import LeastSquaresFit, least_squares_fit

BINS = 1 << 13
EXPONENTS = -100, 127
"""Of the least and the greatest range, so that neither it nor the number of bins in 1 overflows, for zeros too."""


class ActivationStatistics:
    """Histogram of activations, one a scale group, over a range that doubles when a value falls outside.

    Every value counts: a Vision Transformer's few outliers, hundreds of times the typical value, would be missed by a
    sample but decide whether a scale may clip. Each bin keeps its count and the sum of its values, so that its mean is
    exact.

    Args:
        groups: which activations share a scale.
        name: what the activations are called in an error.
    """

    def __init__(self, groups: ScaleGroups, name: str = "activations"):
        self.groups = groups
        self.name = name
        self.limit: Tensor | None = None  # (groups,): the bins cover -limit..limit, a power of two
        self.counts = torch.zeros(groups.count, BINS, dtype=torch.float64)
        self.sums = torch.zeros(groups.count, BINS, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch of activations.

        Raises:
            ValueError: if they hold NaN or infinite values.
        """
        values = self.groups.collect(x).float()
        largest = values.abs().amax(1)
        if not torch.isfinite(largest).all():
            raise ValueError(f"{self.name}: calibration met NaN or infinite values; expected finite activations.")
        self._make_room(largest)
        bins = (values * (BINS / 2 / self.limit[:, None])).floor_().add_(BINS // 2).clamp_(0, BINS - 1).long()
        bins += torch.arange(self.groups.count, device=x.device)[:, None] * BINS
        size = self.groups.count * BINS
        self.counts += torch.bincount(bins.flatten(), minlength=size).view_as(self.counts)
        self.sums += torch.bincount(bins.flatten(), values.flatten().double(), minlength=size).view_as(self.sums)

    def fit(self, bits: int, *, signed: bool, with_offset: bool) -> LeastSquaresFit:
        """Scale and offset of least squared error for the activations seen, see `least_squares_fit`."""
        values = self.sums / self.counts.clamp_min(1)
        return least_squares_fit(
            values.float(), bits, signed=signed, with_offset=with_offset, weights=self.counts.float()
        )

    def _make_room(self, largest: Tensor) -> None:
        needed = torch.exp2(largest.log2().ceil().clamp(*EXPONENTS))
        if self.limit is None:
            self.limit = needed
            self.counts, self.sums = self.counts.to(needed.device), self.sums.to(needed.device)
            return
        grown = torch.maximum(self.limit, needed)
        # Doubling the range maps bin i, counted from the middle, to i / 2: whole bins merge, nothing is split.
        index = torch.arange(BINS, device=grown.device) - BINS // 2
        target = (index / (grown / self.limit)[:, None]).floor().long() + BINS // 2
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, target, self.counts)
        self.sums = torch.zeros_like(self.sums).scatter_add_(1, target, self.sums)
        self.limit = grown
