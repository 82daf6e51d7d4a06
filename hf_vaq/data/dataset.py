"""A torch dataset over a `datasets` split: decode, transform, and nothing random that a seed does not fix."""

import contextlib
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from .transforms import ImageTransform


class ImageDecodeError(ValueError):
    """An image of the data set cannot be read; the message names the column, the row and, where known, the file."""


class ImageClassificationDataset(torch.utils.data.Dataset):
    """Images of one split as `{"pixel_values": float32 (3, height, width), "labels": int}`.

    With `seed=None` (evaluation) the transform runs as it is. With a seed (training) the transform of item i in epoch
    e draws from a generator seeded by (seed, e, i) and from nothing else: the result depends neither on the number of
    workers or processes nor on where a run was interrupted and resumed. torch's global generator stays as it was.

    Args:
        split: a `datasets.Dataset` whose `image_column` has the feature `datasets.Image`.
        labels: the model's class index of every row, shape (rows,), see `hf_vaq.data.labels.model_labels`.
        transform: from an RGB PIL image to a tensor.
        image_column: name of the column with the images.
        seed: non-negative seed of the augmentation, or None.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        labels: np.ndarray,
        transform: ImageTransform,
        *,
        image_column: str = "image",
        seed: int | None = None,
    ):
        if len(labels) != len(split):
            raise ValueError(f"labels has {len(labels)} entries, the split {len(split)} rows; they must agree.")
        # The decoding is done here and not by the split, so that a broken file can be named.
        self._images = split.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._decoder = datasets.Image()
        self._labels = labels
        self._transform = transform
        self._column = image_column
        self._seed = seed
        # In shared memory, because persistent workers keep the copy of the dataset that they started with.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def epoch(self) -> int:
        """The epoch whose augmentations are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn; workers that already run see it too."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._decode(index)
        with self._item_seed(index):
            pixel_values = self._transform(image)
        return {"pixel_values": pixel_values, "labels": int(self._labels[index])}

    def _decode(self, index: int) -> Image.Image:
        stored = self._images[index][self._column]
        where = f"column {self._column!r}, row {index}"
        if stored is None:
            raise ImageDecodeError(f"There is no image in {where}.")
        if stored.get("path"):
            where += f" (file {stored['path']})"
        try:
            return self._decoder.decode_example(stored).convert("RGB")
        # PIL raises OSError for truncated and unknown files, SyntaxError and ValueError for broken headers.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageDecodeError(f"The image in {where} cannot be read: {error}") from error

    @contextlib.contextmanager
    def _item_seed(self, index: int):
        if self._seed is None:
            yield
            return
        entropy = np.random.SeedSequence([self._seed, self.epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(entropy[0]))
            yield


class SetEpochCallback(TrainerCallback):
    """Tell the training dataset its epoch at the start of each one.

    accelerate's data loader calls `set_epoch` of a dataset only when its sampler has no such method of its own, which
    is not so with several processes and after resuming within an epoch.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Set the epoch of the dataset behind the trainer's loader."""
        dataset = getattr(train_dataloader, "dataset", None)
        if isinstance(dataset, ImageClassificationDataset):
            # state.epoch is a float: 2.0 at the start of the third epoch, 2.4 when it is resumed within it
            dataset.set_epoch(int(state.epoch or 0))
