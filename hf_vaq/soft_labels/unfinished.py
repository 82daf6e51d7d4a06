"""The folder of a store while it is being made: shards that appear whole, and what turns them into a store."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa

from ..files import remove_leftovers, whole_file, write_json
from .card import store_card
from .images import EncodedImages
from .metadata import METADATA, LabelSettings, Shard, StoreMetadata
from .records import ImageLabels
from .store import PLAN, file_checksum, read_digests


class UnfinishedStore:
    """A folder in which one or more processes write the shards of a store, in any order.

    It holds a plan (the settings) until all shards are there and the metadata is written. A process that is killed
    leaves whole shards, and temporary files that the next `claim` removes.

    Args:
        folder: of the store.
        settings: of the labelling.
    """

    def __init__(self, folder: Path, settings: LabelSettings):
        self.folder = folder
        self.settings = settings

    def claim(self, images: EncodedImages) -> bool:
        """Make the folder, or take up what an earlier run left in it.

        Returns:
            Whether the store is finished already.

        Raises:
            ValueError: the folder holds something else, another labelling, or an unfinished one of other images.
        """
        plan = self.folder / PLAN
        finished = (self.folder / METADATA).is_file()
        if finished:
            self._check_same(StoreMetadata.read(self.folder).settings)
            plan.unlink(missing_ok=True)
        elif plan.is_file():
            self._check_same(_read_plan(plan))
            for folder in (self.folder, self.folder / "data"):
                remove_leftovers(folder)
            if not images.streams:
                self._check_images(images)
        elif self.folder.exists() and (not self.folder.is_dir() or self._foreign_entries()):
            raise ValueError(
                f"soft_labels {str(self.folder)!r} is not empty and holds no labelling; accepted: a folder that is "
                "empty or does not exist."
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            write_json(plan, asdict(self.settings))
        (self.folder / "data").mkdir(exist_ok=True)
        return finished

    def shards(self) -> list[int]:
        """Return the numbers of the shards that are there, ascending."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in (self.folder / "data").glob("labels-*.arrow"))

    def write_shard(self, number: int, rows: list[ImageLabels]) -> None:
        """Write the labels of consecutive images as one shard."""
        layout = self.settings.layout
        first = number * self.settings.images_per_shard
        with (
            whole_file(self.folder / _shard_file(number)) as partial,
            pa.OSFile(str(partial), "wb") as file,
            pa.ipc.new_file(file, layout.schema) as writer,
        ):
            for start in range(0, len(rows), layout.images_per_batch):
                writer.write_batch(layout.encode(first + start, rows[start : start + layout.images_per_batch]))

    def finish(self, num_images: int) -> None:
        """Wait for the shards of all processes, and write card and metadata.

        Raises:
            ValueError: there are no images, or not as many as were labelled.
        """
        if num_images == 0:
            raise ValueError(f"dataset {self.settings.dataset!r} has no images to label.")
        digest, shards = blake2b(digest_size=16), []
        for number in range(-(-num_images // self.settings.images_per_shard)):
            file = _shard_file(number)
            self._wait_for(file)
            path = self.folder / file
            digests = read_digests(path)
            digest.update(digests.astype("<u8").tobytes())
            shards.append(Shard(file, len(digests), path.stat().st_size, file_checksum(path)))
        found = sum(shard.images for shard in shards)
        if found != num_images:
            raise ValueError(
                f"soft_labels {str(self.folder)!r} holds labels of {found} images, the data set has {num_images}: it "
                "changed while it was labelled. Choose another folder."
            )
        metadata = StoreMetadata(self.settings, num_images, digest.hexdigest(), tuple(shards))
        with whole_file(self.folder / "README.md") as partial:
            partial.write_text(store_card(metadata), encoding="utf-8")
        metadata.write(self.folder)
        (self.folder / PLAN).unlink()

    def wait(self) -> None:
        """Return once the store is finished.

        Files are watched instead of meeting at a barrier: the last shard of another process may take longer than a
        barrier waits.
        """
        self._wait_for(METADATA)

    def _wait_for(self, file: str) -> None:
        while not (self.folder / file).is_file():
            time.sleep(0.05)

    def _foreign_entries(self) -> list[str]:
        """What is not left from a labelling that was killed while it wrote its plan."""
        return [path.name for path in self.folder.iterdir() if not path.name.startswith(f".{PLAN}.")]

    def _check_same(self, settings: LabelSettings) -> None:
        difference = settings.first_difference(self.settings)
        if difference is not None:
            raise ValueError(
                f"soft_labels {str(self.folder)!r} holds another labelling: {difference}. Choose another folder, or "
                "repeat the labelling with the same settings."
            )

    def _check_images(self, images: EncodedImages) -> None:
        """Compare the first image of every shard that an earlier run finished with the image that is there now."""
        for number in self.shards():
            row = number * self.settings.images_per_shard
            labelled = read_digests(self.folder / _shard_file(number))[0]
            if row >= len(images) or images[row].digest != labelled:
                raise ValueError(
                    f"soft_labels {str(self.folder)!r} holds an unfinished labelling of other images: row {row} is "
                    "not the image that was labelled. Choose another folder."
                )


def _read_plan(path: Path) -> LabelSettings:
    try:
        return LabelSettings.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged or of another version of hf_vaq ({error}). Remove the folder and label anew."
        ) from error


def _shard_file(number: int) -> str:
    return f"data/labels-{number:05d}.arrow"
