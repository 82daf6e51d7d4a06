"""The dataset that a student learns from: stored crops of images, with their soft labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from .checks import check_digest, check_images
from .crops import INTERPOLATIONS, cut_crop, normalize_pixels
from .images import EncodedImages, the_image_column
from .recovery import RECOVERIES, recover_probabilities
from .store import SoftLabelStore

if TYPE_CHECKING:
    from ..training.preprocessing import ImageNormalization


class SoftLabelDataset(Dataset):
    """Stored crops as `{"pixel_values": float32 (3, height, width), "soft_labels": float32 (classes,)}`.

    It is counted in crops. An epoch has as many crops as there are images (rounded down to a multiple of
    `num_crops`): it visits every `num_crops`-th image of a random order and takes `num_crops` crops of each, so that
    `num_crops` epochs visit every image once. Items `num_crops * i` to `num_crops * (i + 1) - 1` are the crops of one
    image, which is decoded once if they are asked for together (`__getitems__`, which torch's `DataLoader` calls).

    Order and crops depend on (seed, epoch) only. The order is another one after every `num_crops` epochs, in which no
    image occurs twice; and no crop of an image is used again before all others were.

    Args:
        split: with the images that were labelled, in that order.
        store: of their labels.
        num_crops: crops of an image that enter a batch together.
        normalization: from 8-bit pixels to the student's input.
        size: (height, width) of the student's input in pixels.
        recovery: see `recover_probabilities`.
        seed: of order and choice.
        label_order: for every label of the student the store's index of it, or None where they agree.

    Raises:
        ValueError: a field is not what is accepted.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        store: SoftLabelStore,
        *,
        num_crops: int = 4,
        normalization: ImageNormalization,
        size: tuple[int, int],
        recovery: str = "smoothing",
        seed: int = 0,
        label_order: list[int] | None = None,
    ):
        if not isinstance(split, datasets.Dataset):
            raise ValueError(
                f"the training images are a {type(split).__name__}; accepted with soft_labels: a datasets.Dataset, "
                "whose rows can be read in any order."
            )
        stored = store.settings.crops_per_image
        if not 1 <= num_crops <= min(stored, len(split)):
            raise ValueError(
                f"num_crops is {num_crops}; accepted: 1 to {min(stored, len(split))} (the store has {stored} crops of "
                f"each image, the training split {len(split)} images)."
            )
        if recovery not in RECOVERIES:
            raise ValueError(f"soft_label_recovery is {recovery!r}; accepted: {' or '.join(RECOVERIES)}.")
        self.store = store
        self.num_crops = num_crops
        self._images = EncodedImages(split, the_image_column(split))
        self._resample = INTERPOLATIONS[store.settings.interpolation]
        self._size = size
        self._source = torch.tensor(normalization.source)
        self._scale = torch.tensor(normalization.scale, dtype=torch.float32)
        self._offset = torch.tensor(normalization.offset, dtype=torch.float32)
        self._recovery = recovery
        self._seed = seed
        self._label_order = label_order
        # In shared memory: workers that outlive an epoch have to see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order: tuple[int, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the crops read from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.store) // self.num_crops * self.num_crops

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        """The items of a batch; neighbours that are crops of one image share its decoding."""
        items: list[dict[str, torch.Tensor]] = []
        start = 0
        while start < len(indices):
            position = indices[start] // self.num_crops
            end = start + 1
            while end < len(indices) and indices[end] // self.num_crops == position:
                end += 1
            items += self._crops(*self.choice(position), [index % self.num_crops for index in indices[start:end]])
            start = end
        return items

    def check(self, *, shards: bool = True) -> None:
        """Compare the images with those that were labelled and, if `shards`, the store with its checksums.

        Raises:
            ImageMismatchError: another data set, or another order.
            DamagedStoreError: naming the shard.
        """
        if shards:
            self.store.verify()
        check_images(self.store, self._images)

    def choice(self, position: int) -> tuple[int, np.ndarray]:
        """Return which image the present epoch visits at a position, and which of its crops, (num_crops,)."""
        sweep, part = divmod(int(self._epoch), self.num_crops)
        image = int(self._sweep_order(sweep)[part * (len(self) // self.num_crops) + position])
        # All crops of an image are used before one is used again.
        sweeps = self.store.settings.crops_per_image // self.num_crops
        deal, place = divmod(sweep, sweeps)
        order = _generator(self._seed, 1, image, deal).permutation(self.store.settings.crops_per_image)
        return image, order[place * self.num_crops : (place + 1) * self.num_crops]

    def _sweep_order(self, sweep: int) -> np.ndarray:
        if self._order is None or self._order[0] != sweep:
            self._order = (sweep, _generator(self._seed, 0, sweep).permutation(len(self.store)))
        return self._order[1]

    def _crops(self, row: int, crops: np.ndarray, wanted: list[int]) -> list[dict[str, torch.Tensor]]:
        image, labels = self._images[row], self.store[row]
        check_digest(self.store, row, image.digest, labels.digest)
        crops = crops[wanted]
        decoded = image.decode()
        cut = [cut_crop(decoded, labels.boxes[crop], labels.flips[crop], self._size, self._resample) for crop in crops]
        pixels = normalize_pixels(torch.from_numpy(np.stack(cut)), self._source, self._scale, self._offset)
        classes = None if labels.classes is None else labels.classes[crops]
        recovered = recover_probabilities(classes, labels.probabilities[crops], self.store.num_classes, self._recovery)
        if self._label_order is not None:
            recovered = recovered[:, self._label_order]
        targets = torch.from_numpy(recovered)
        return [{"pixel_values": x, "soft_labels": y} for x, y in zip(pixels, targets, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        # The order is quickly drawn again, and large.
        return self.__dict__ | {"_order": None}


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
