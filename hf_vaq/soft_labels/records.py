"""What the store holds of an image, as a row of Arrow: fixed widths, so that nothing is spent on offsets."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

_BYTES_PER_BATCH = 65536


@dataclass(frozen=True)
class ImageLabels:
    """The labelled crops of one image.

    Attributes:
        boxes: (left, top, right, bottom) in 1/65535 of the image's width and height, uint16 (crops, 4).
        flips: whether the crop is mirrored, bool (crops,).
        classes: the most probable classes, uint16 or uint32 (crops, k), most probable first; None if all are stored.
        probabilities: of these, float16 (crops, k), or of all classes in order, float16 (crops, classes).
        digest: of the encoded image, see `images.content_digest`.
    """

    boxes: np.ndarray
    flips: np.ndarray
    classes: np.ndarray | None
    probabilities: np.ndarray
    digest: int


@dataclass(frozen=True)
class RecordLayout:
    """The columns of a store and their widths.

    Attributes:
        crops: an image.
        top_k: classes stored of each crop; None for all.
        num_classes: of the teacher.
    """

    crops: int
    top_k: int | None
    num_classes: int

    @property
    def class_type(self) -> str:
        """The smallest type of a class index: 16 bits suffice for 65,536 classes."""
        return "uint16" if self.num_classes <= 65536 else "uint32"

    @property
    def bytes_per_crop(self) -> float:
        """Bytes of one crop's box, flip, classes and probabilities."""
        index = 0 if self.top_k is None else np.dtype(self.class_type).itemsize
        return 8 + 1 / 8 + (self.top_k or self.num_classes) * (index + 2)

    @property
    def images_per_batch(self) -> int:
        """Rows of a record batch, the unit in which a store is read: about 64 KiB."""
        return max(1, int(_BYTES_PER_BATCH // (self.crops * self.bytes_per_crop)))

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the features that `datasets.load_dataset` gives the columns."""
        values = self.top_k or self.num_classes

        def per_crop(dtype: str, length: int) -> datasets.List:
            return datasets.List(datasets.List(datasets.Value(dtype), length=length), length=self.crops)

        features = {
            "image": datasets.Value("uint32"),
            "digest": datasets.Value("uint64"),
            "boxes": per_crop("uint16", 4),
            "flips": datasets.List(datasets.Value("bool"), length=self.crops),
        }
        if self.top_k is not None:
            features["classes"] = per_crop(self.class_type, values)
        features["probabilities"] = per_crop("float16", values)
        return datasets.Features(features).arrow_schema

    def encode(self, first_image: int, rows: list[ImageLabels]) -> pa.RecordBatch:
        """Make a record batch of consecutive images."""

        def per_crop(arrays: list[np.ndarray]) -> pa.Array:
            stacked = np.stack(arrays)
            inner = pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), stacked.shape[-1])
            return pa.FixedSizeListArray.from_arrays(inner, self.crops)

        columns = {
            "image": pa.array(np.arange(first_image, first_image + len(rows), dtype=np.uint32)),
            "digest": pa.array(np.array([row.digest for row in rows], dtype=np.uint64)),
            "boxes": per_crop([row.boxes for row in rows]),
            "flips": pa.FixedSizeListArray.from_arrays(
                pa.array(np.concatenate([row.flips for row in rows])), self.crops
            ),
        }
        if self.top_k is not None:
            columns["classes"] = per_crop([row.classes.astype(self.class_type) for row in rows])
        columns["probabilities"] = per_crop([row.probabilities.astype(np.float16) for row in rows])
        return pa.record_batch(list(columns.values()), schema=self.schema)

    def decode(self, batch: pa.RecordBatch, row: int | None = None) -> ImageLabels:
        """Return one row of a record batch, or all of them; the arrays are views of it, but for the flips.

        Raises:
            ValueError: the batch has other columns, or rows without a value.
        """
        if not batch.schema.equals(self.schema):
            raise ValueError("its columns or their types are not those of its soft_labels.json")
        if any(column.null_count for column in batch.columns):
            raise ValueError("a row lacks a value")
        rows = slice(None) if row is None else row

        def per_crop(name: str) -> np.ndarray:
            values = batch.column(name).values.values
            if values.null_count:
                raise ValueError(f"column {name!r} lacks a value")
            return values.to_numpy().reshape(batch.num_rows, self.crops, -1)[rows]

        digests = batch.column("digest").to_numpy()
        flips = batch.column("flips").values.to_numpy(zero_copy_only=False)
        return ImageLabels(
            boxes=per_crop("boxes"),
            flips=flips.reshape(batch.num_rows, self.crops)[rows],
            classes=None if self.top_k is None else per_crop("classes"),
            probabilities=per_crop("probabilities"),
            digest=digests if row is None else int(digests[row]),
        )
