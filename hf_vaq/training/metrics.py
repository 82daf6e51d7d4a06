"""Means of logged quantities between two logging steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningMeans:
    """Adds up scalars on their device, so that a GPU is not waited for before they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def reset(self) -> None:
        """Forget everything added."""
        self._sums.clear()
        self._counts.clear()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one scalar tensor per name; names may differ from call to call."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over calls and processes since the last time, which then begin anew.

        Every process must have added the same names.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean")
        self.reset()
        return dict(zip(names, means.tolist(), strict=True))
