"""What a store says of itself: how its labels were made, of what, and which files it consists of."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_json
from .crops import INTERPOLATIONS
from .records import RecordLayout

FORMAT = "hf_vaq soft labels"
FORMAT_VERSION = 1
METADATA = "soft_labels.json"


@dataclass(frozen=True)
class LabelSettings:
    """All that decides the content of a store, apart from the pixels and the teacher's weights themselves.

    Attributes:
        teacher: Hub id, or name of the folder, of the teacher.
        teacher_revision: commit on the Hub; None for a local model.
        teacher_fingerprint: hash of the teacher's weights.
        teacher_image_size: (height, width) in pixels that the crops are resized to for the teacher.
        teacher_dtype: floating-point type in which the teacher ran.
        label_names: class names of the teacher, in order.
        crops_per_image: number of crops.
        top_k: classes stored of each crop; None for all.
        crop_scale, crop_ratio, horizontal_flip, seed: see `CropSampling`.
        interpolation: filter that resizes the crops, for teacher and student.
        dataset, dataset_config, split: what the images are called.
        image_column: column of the images.
        batch_size: crops in a forward pass of the teacher: it may change the last bits of its output.
        images_per_shard: rows of every shard but the last.
    """

    teacher: str
    teacher_revision: str | None
    teacher_fingerprint: str
    teacher_image_size: tuple[int, int]
    teacher_dtype: str
    label_names: tuple[str, ...]
    crops_per_image: int
    top_k: int | None
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    horizontal_flip: float
    seed: int
    interpolation: str
    dataset: str
    dataset_config: str | None
    split: str | None
    image_column: str
    batch_size: int
    images_per_shard: int

    @property
    def layout(self) -> RecordLayout:
        """The columns of the store."""
        return RecordLayout(self.crops_per_image, self.top_k, len(self.label_names))

    def first_difference(self, other: LabelSettings) -> str | None:
        """Name the first field that differs, with both values; None if all agree."""
        for field in dataclasses.fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                shown = ("differ", "") if field.name == "label_names" else (f"was {ours!r}", f", now it is {theirs!r}")
                return f"{field.name} {shown[0]}{shown[1]}"
        return None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LabelSettings:
        """Undo `dataclasses.asdict` after a passage through JSON, which has no tuples."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def shard_file(number: int) -> str:
    """Return the path of a shard below the folder of its store."""
    return f"data/labels-{number:05d}.arrow"


@dataclass(frozen=True)
class Shard:
    """One file of a store: its path below the store's folder, rows, size in bytes and CRC-32."""

    file: str
    images: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class StoreMetadata:
    """What `soft_labels.json` holds.

    Attributes:
        settings: how the labels were made.
        num_images: rows of all shards.
        source_fingerprint: hash of the digests of all images, in order.
        shards: the files, in order.
    """

    settings: LabelSettings
    num_images: int
    source_fingerprint: str
    shards: tuple[Shard, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def bytes_per_crop(self) -> float:
        """Bytes on the disk per crop, everything counted."""
        return self.num_bytes / (self.num_images * self.settings.crops_per_image)

    def _check(self) -> None:
        """Raise a `ValueError` for what no store says of itself."""
        settings, size = self.settings, self.settings.images_per_shard
        most = len(settings.label_names)
        for name, value, high in (
            ("crops_per_image", settings.crops_per_image, 2**31),
            ("images_per_shard", size, 2**31),
            ("num_images", self.num_images, 2**32),
            ("top_k", 1 if settings.top_k is None else settings.top_k, most),
        ):
            if type(value) is not int or not 1 <= value <= high:
                raise ValueError(f"{name} is {value!r}; accepted: 1 to {high}")
        if settings.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {settings.interpolation!r}; accepted: {', '.join(INTERPOLATIONS)}")
        rows = [min(size, self.num_images - first) for first in range(0, self.num_images, size)]
        if [(shard.file, shard.images) for shard in self.shards] != [(shard_file(i), n) for i, n in enumerate(rows)]:
            raise ValueError(
                f"shards are not {shard_file(0)} to {shard_file(len(rows) - 1)} with the rows of num_images and"
                " images_per_shard"
            )

    def write(self, folder: Path) -> None:
        """Write `soft_labels.json`: with it the store is complete."""
        write_json(folder / METADATA, {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> StoreMetadata:
        """Read `soft_labels.json`.

        Raises:
            ValueError: it is damaged, or of a newer version.
        """
        path = folder / METADATA
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"] if content["format"] == FORMAT else None
            if version == FORMAT_VERSION:
                metadata = cls(
                    LabelSettings.from_dict(content["settings"]),
                    content["num_images"],
                    content["source_fingerprint"],
                    tuple(Shard(**shard) for shard in content["shards"]),
                )
                metadata._check()
                return metadata
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} is damaged: {type(error).__name__}: {error}.") from error
        raise ValueError(
            f"{str(path)!r} has format_version {version!r}; this version of hf_vaq reads {FORMAT_VERSION}: upgrade it."
        )
