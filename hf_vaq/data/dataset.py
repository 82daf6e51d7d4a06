"""A torch dataset over a `datasets` split that names the image it cannot read."""

from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from .pictures import as_rgb
from .transforms import ImageTransform


class ImageDecodeError(ValueError):
    """An image of the data set cannot be read; the message names the column, the row and, where known, the file."""


class ImageClassificationDataset(torch.utils.data.Dataset):
    """Images of one split as `{"pixel_values": float32 (3, height, width), "labels": int}`.

    Random transforms draw from torch's global generator. `VaqTrainer` seeds it for each image, so that what it draws
    depends on the seed, the epoch and the index only.

    Args:
        split: a `datasets.Dataset` whose `image_column` has the feature `datasets.Image`.
        labels: the model's class index of every row, shape (rows,), see `hf_vaq.data.labels.model_labels`.
        transform: from an RGB PIL image to a tensor.
        image_column: name of the column with the images.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        labels: np.ndarray,
        transform: ImageTransform,
        *,
        image_column: str = "image",
    ):
        if len(labels) != len(split):
            raise ValueError(f"labels has {len(labels)} entries, the split {len(split)} rows; they must agree.")
        # The decoding is done here and not by the split, so that a broken file can be named.
        self._images = split.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._decoder = datasets.Image()
        self._labels = labels
        self._transform = transform
        self._column = image_column

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self._transform(self._decode(index)), "labels": int(self._labels[index])}

    def _decode(self, index: int) -> Image.Image:
        return decode_image(self._images[index][self._column], f"column {self._column!r}, row {index}", self._decoder)


def decode_image(stored: dict[str, Any] | None, where: str, decoder: datasets.Image) -> Image.Image:
    """Return an image of a column that is not decoded, as `as_rgb` does.

    Args:
        stored: its encoded "bytes" or "path", or both.
        where: it stands, for messages.
        decoder: feature of the column.

    Raises:
        ImageDecodeError: there is no image, or it cannot be read.
    """
    if stored is None:
        raise ImageDecodeError(f"There is no image in {where}.")
    if stored.get("path"):
        where += f" (file {stored['path']})"
    try:
        return as_rgb(decoder.decode_example(stored))
    # PIL raises OSError for truncated and unknown files, SyntaxError and ValueError for broken headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageDecodeError(f"The image in {where} cannot be read: {error}") from error
