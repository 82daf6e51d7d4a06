"""The same images for several models, each with its own preprocessing and labels: stored, or from a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image

from .dataset import ImageClassificationDataset, decode_image
from .transforms import ImageTransform


class View(NamedTuple):
    """What one model sees of a stream: its transform, and its class index of a label and the row that it stands in."""

    transform: ImageTransform
    label: Callable[[Any, int], int]


class SideBySideImages(torch.utils.data.Dataset):
    """Images of a split as a tuple with one `{"pixel_values": ..., "labels": int}` a model.

    An image is decoded once, and transformed once for all models with the same transform.

    Args:
        split: a `datasets.Dataset` whose `image_column` has the feature `datasets.Image`.
        labels: for each model, its class index of every row.
        transforms: for each model, from an RGB PIL image to a tensor (3, height, width).
        image_column: name of the column with the images.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        labels: Sequence[np.ndarray],
        transforms: Sequence[ImageTransform],
        *,
        image_column: str = "image",
    ):
        self._images = ImageClassificationDataset(split, labels[0], _unchanged, image_column=image_column)
        self._labels = labels
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], ...]:
        image = self._images[index]["pixel_values"]
        return _examples(image, self._transforms, [int(labels[index]) for labels in self._labels])


class ImageStream(torch.utils.data.IterableDataset):
    """The same from a stream, of which no image is kept.

    With several workers each reads some of the stream's files, so the order of the images, and which are the first
    ones of each, depends on the number of workers.

    Args:
        stream: a `datasets.IterableDataset` whose `image_column` has the feature `datasets.Image`.
        views: one a model.
        image_column, label_column: names of the columns.
    """

    def __init__(
        self, stream: datasets.IterableDataset, views: Sequence[View], *, image_column: str, label_column: str
    ):
        # The decoding is done here and not by the stream, so that a broken file can be named.
        self._stream = stream.cast_column(image_column, datasets.Image(decode=False))
        self._decoder = datasets.Image()
        self._views = views
        self._image_column, self._label_column = image_column, label_column

    def __iter__(self) -> Iterator[tuple[dict[str, Any], ...]]:
        transforms = [view.transform for view in self._views]
        for row, example in enumerate(self._stream):
            # The label is checked first: it is the cheaper of the two.
            labels = [view.label(example[self._label_column], row) for view in self._views]
            where = f"column {self._image_column!r}, row {row}"
            yield _examples(decode_image(example[self._image_column], where, self._decoder), transforms, labels)


def _examples(
    image: Image.Image, transforms: Sequence[ImageTransform], labels: Sequence[int]
) -> tuple[dict[str, Any], ...]:
    made: dict[int, torch.Tensor] = {}
    for transform in transforms:
        if id(transform) not in made:
            made[id(transform)] = transform(image)
    return tuple(
        {"pixel_values": made[id(transform)], "labels": label}
        for transform, label in zip(transforms, labels, strict=True)
    )


def _unchanged(image: Image.Image) -> Image.Image:
    return image
