"""The images of a `datasets` split, encoded, so that each can be recognised before it is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import datasets
import fsspec
from PIL import Image

from ..data import ImageDecodeError, decode_image


@dataclass(frozen=True)
class EncodedImage:
    """One image of a split.

    Attributes:
        row: its number in the split.
        content: its encoded bytes.
        path: its file, where it has one.
        column: of the split.
    """

    row: int
    content: bytes
    path: str | None
    column: str

    @property
    def digest(self) -> int:
        """What the image is recognised by, see `content_digest`."""
        return content_digest(self.content)

    def decode(self) -> Image.Image:
        """Return the image in RGB.

        Raises:
            ImageDecodeError: it cannot be read.
        """
        where = f"column {self.column!r}, row {self.row}"
        return decode_image({"bytes": self.content, "path": self.path}, where, datasets.Image())


class EncodedImages:
    """The encoded images of a split: by row, or in order where it is a stream.

    Args:
        split: a `datasets.Dataset` or `datasets.IterableDataset`.
        column: with images, file names or encoded bytes.

    Raises:
        ValueError: the split has no such column.
    """

    def __init__(self, split: datasets.Dataset | datasets.IterableDataset, column: str):
        names = split.column_names
        if names is not None and column not in names:
            raise ValueError(f"image_column is {column!r}; the data set has: {', '.join(names)}.")
        if names is not None:
            split = split.select_columns([column])
        # Decoding would lose the bytes that an image is recognised by.
        self._split = split.cast_column(column, datasets.Image(decode=False))
        self.column = column
        self.streams = isinstance(split, datasets.IterableDataset)

    @property
    def expected_length(self) -> int | None:
        """Number of images that the description of the data set states, if any; streams may differ from it."""
        splits, name = self._split.info.splits or {}, str(self._split.split)
        return splits[name].num_examples or None if name in splits else None

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, row: int) -> EncodedImage:
        return self._encoded(row, self._split[row][self.column])

    def stream(self, first: int = 0) -> Iterator[EncodedImage]:
        """Yield the images in order, from row `first` on."""
        split = self._split.skip(first) if self.streams else self._split.select(range(first, len(self._split)))
        for row, example in enumerate(split, first):
            yield self._encoded(row, example[self.column])

    def _encoded(self, row: int, stored: Any) -> EncodedImage:
        where = f"column {self.column!r}, row {row}"
        if stored is None:
            raise ImageDecodeError(f"There is no image in {where}.")
        content, path = stored.get("bytes"), stored.get("path")
        if content is None:
            try:
                with fsspec.open(path, "rb") as file:
                    content = file.read()
            except OSError as error:
                raise ImageDecodeError(f"The image in {where} (file {path}) cannot be read: {error}") from error
        return EncodedImage(row, content, path, self.column)


def content_digest(content: bytes) -> int:
    """Return 64 bits of the BLAKE2b hash of an encoded image."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def the_image_column(split: datasets.Dataset | datasets.IterableDataset) -> str:
    """Return the name of the only column with images.

    Raises:
        ValueError: there is none, or more than one.
    """
    features = split.features or {}
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        found = f"columns {', '.join(columns)} hold images" if columns else "no column holds images"
        raise ValueError(
            f"{found} (there are: {', '.join(features) or 'none'}); accepted: a split with one image column. Choose "
            "it with select_columns, or give a column the feature datasets.Image() with cast_column."
        )
    return columns[0]
