"""What every runtime is given, and what it gives back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

CALIBRATION_BATCHES = 8


class Logits(nn.Module):
    """A transformers model as a function from pixels to logits, which is what export formats can express."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to (batch, classes)."""
        return self.model(pixel_values=pixel_values).logits


@dataclass
class Task:
    """The same work for every contestant.

    Attributes:
        model: the float32 model; copied before anybody changes it.
        batch_size: images of one call.
        threads: threads of every runtime.
        folder: where files of this model are kept from one run to the next.
    """

    model: PreTrainedModel
    batch_size: int
    threads: int
    folder: Path

    def copy(self) -> PreTrainedModel:
        """A float32 model that may be changed."""
        return copy.deepcopy(self.model)

    def pixels(self, batch_size: int | None = None, seed: int = 0) -> torch.Tensor:
        """Standard-normal images: (batch, 3, height, width)."""
        size = self.model.config.image_size
        shape = (batch_size or self.batch_size, self.model.config.num_channels, size, size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def calibration(self) -> list[torch.Tensor]:
        """Single images that static quantization takes its ranges from."""
        return [self.pixels(1, seed) for seed in range(1, 1 + CALIBRATION_BATCHES)]


@dataclass
class Contestant:
    """One way to run the task.

    Attributes:
        run: does the work once, and returns the logits.
        size_bytes: of its weights on disk, where it has a file of its own.
        execution: how it computes, as far as the runtime says.
    """

    run: Callable[[], Any]
    size_bytes: int | None = None
    execution: str | None = None


Builder = Callable[[Task], Contestant]


class CannotRun(RuntimeError):
    """A contestant that does not run here, with the reason."""
