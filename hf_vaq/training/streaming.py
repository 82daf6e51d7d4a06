"""Training on a stream of images, of which none is kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch

from ..data.dataset import decode_image
from ..data.transforms import ImageTransform
from .seeding import seeded


class TrainingStream(torch.utils.data.IterableDataset):
    """Passes over a stream without end, as `{"pixel_values": float32 (3, height, width), "labels": int}`.

    Every pass is shuffled anew, with a buffer. What random transforms draw depends on the seed, the pass, the worker
    and the place in its part of the stream only, so that a run that is resumed (with the same number of workers) sees
    the images that one would have seen that was never interrupted.

    Args:
        stream: a `datasets.IterableDataset` whose `image_column` has the feature `datasets.Image`.
        label: class index of the model from a label and the row that it stands in, see `hf_vaq.data.LabelLookup`.
        transform: from an RGB PIL image to a tensor; draws from torch's global generator.
        image_column, label_column: names of the columns.
        seed: of order and transforms.
        buffer_size: images to choose the next one from.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        label: Callable[[Any, int], int],
        transform: ImageTransform,
        *,
        image_column: str,
        label_column: str,
        seed: int = 0,
        buffer_size: int = 1000,
    ):
        # Decoded here, so that a broken file can be named, and so that the buffer holds files and not pixels.
        stream = stream.cast_column(image_column, datasets.Image(decode=False))
        self._stream = stream.shuffle(seed=seed, buffer_size=buffer_size)
        self._decoder = datasets.Image()
        self._label = label
        self._transform = transform
        self._image_column, self._label_column = image_column, label_column
        self._seed = seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the examples of this worker's part, pass after pass.

        Raises:
            ValueError: an image or a label that cannot be used, or an empty stream.
        """
        worker = torch.utils.data.get_worker_info()
        part = 0 if worker is None else worker.id
        for number in itertools.count():
            self._stream.set_epoch(number)
            row = -1
            for row, example in enumerate(self._stream):
                label = self._label(example[self._label_column], row)
                where = f"column {self._image_column!r}, image {row} of pass {number}"
                image = decode_image(example[self._image_column], where, self._decoder)
                with seeded(self._seed, number, part, row):
                    pixel_values = self._transform(image)
                yield {"pixel_values": pixel_values, "labels": label}
            if row < 0 and part == 0:
                raise ValueError("the stream of training images is empty: expected at least one image.")
            if row < 0:
                # There are more workers than files in the stream; this one has nothing to read.
                return
