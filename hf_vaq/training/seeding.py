"""Random transforms that depend on the seed, the epoch and the image, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch (CPU) from `key`, and put their states back afterwards."""
    with _kept_states():
        _seed(key)
        yield


@contextmanager
def _kept_states() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(key: tuple[int, ...]) -> None:
    seed = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: that would reseed GPUs too, whose state is not put back here.
    torch.default_generator.manual_seed(seed)


class SeededDataset(Dataset):
    """A view of a dataset in which the random transforms of an image depend on (seed, epoch, index) only.

    A training run that is resumed then sees the same augmented images as one that was never interrupted, whatever was
    read ahead, and whatever the number of workers or processes.

    Args:
        dataset: any dataset with a length and integer indices.
        seed: any integer.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset = dataset
        self.seed = seed
        # In shared memory: workers that outlive an epoch have to see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the images read from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items of a batch, each with its own seed; the states of the generators are kept once for all of them."""
        items = []
        epoch = int(self._epoch)
        with _kept_states():
            for index in indices:
                _seed((self.seed, epoch, int(index)))
                items.append(self.dataset[index])
        return items


class EpochSetter(TrainerCallback):
    """Tells a dataset with `set_epoch` the epoch that begins.

    The loader that accelerate makes does so itself only with one process and as long as no batches are skipped.
    """

    def __init__(self) -> None:
        self.dataset: Any = None  # SeededDataset or SoftLabelDataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer before it makes the epoch's iterator; after a resume `state.epoch` is a fraction."""
        if self.dataset is not None:
            self.dataset.set_epoch(int(state.epoch or 0))
