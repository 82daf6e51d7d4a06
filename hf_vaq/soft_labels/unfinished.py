"""The folder of a store while it is being made: shards that appear whole, and what turns them into a store."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
from transformers.utils import logging

from ..files import remove_leftovers, whole_file, write_json
from .card import store_card
from .images import EncodedImages
from .lock import LOCK, sole_user
from .metadata import METADATA, LabelSettings, Shard, StoreMetadata, shard_file
from .records import ImageLabels
from .store import PLAN, DamagedStoreError, file_checksum, read_digests

logger = logging.get_logger(__name__)

_RECORDS = ".labels-*.json"


class UnfinishedStore:
    """A folder in which one or more processes write the shards of a store, in any order.

    It holds a plan (the settings) and a record of every shard (its rows, size and CRC-32, as it was written) until all
    shards are there and the metadata is written. A process that is killed leaves whole shards, and temporary files
    that the next `claim` removes, as it does shards that are not what was written.

    Args:
        folder: of the store.
        settings: of the labelling.
    """

    def __init__(self, folder: Path, settings: LabelSettings):
        self.folder = folder
        self.settings = settings

    def claim(self, images: EncodedImages, held: ExitStack) -> bool:
        """Make the folder, or take up what an earlier run left in it.

        Args:
            images: to be labelled.
            held: until it is closed, no other process of this machine can claim the folder.

        Returns:
            Whether the store is finished already.

        Raises:
            ValueError: the folder holds something else, another labelling, or one of other images; or
                another process is labelling into it.
        """
        plan = self.folder / PLAN
        if self._is_finished():
            self._check_finished(images)
            return True
        if plan.is_file():
            self._check_same(_read_plan(plan))
        elif self.folder.exists() and (not self.folder.is_dir() or self._foreign_entries()):
            raise ValueError(
                f"soft_labels {str(self.folder)!r} is not empty and holds no labelling; accepted: a folder that is "
                "empty or does not exist."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(sole_user(self.folder))
        if self._is_finished():  # by whoever held it
            self._check_finished(images)
            return True
        remove_leftovers(self.folder)
        if plan.is_file():
            self._check_same(_read_plan(plan))
            (self.folder / "data").mkdir(exist_ok=True)
            remove_leftovers(self.folder / "data")
            self._remove_damaged()
            if not images.streams:
                self._check_images(images)
        else:
            write_json(plan, asdict(self.settings))
        (self.folder / "data").mkdir(exist_ok=True)
        return False

    def shards(self) -> list[int]:
        """Return the numbers of the shards that are there, ascending."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in (self.folder / "data").glob("labels-*.arrow"))

    def write_shard(self, number: int, rows: list[ImageLabels]) -> None:
        """Write the labels of consecutive images as one shard."""
        layout = self.settings.layout
        first = number * self.settings.images_per_shard
        with whole_file(self.folder / shard_file(number)) as partial:
            with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, layout.schema) as writer:
                for start in range(0, len(rows), layout.images_per_batch):
                    writer.write_batch(layout.encode(first + start, rows[start : start + layout.images_per_batch]))
            # Before the shard has its name: a shard that is there always has its record.
            shard = Shard(shard_file(number), len(rows), partial.stat().st_size, file_checksum(partial))
            write_json(self._record(number), asdict(shard))

    def finish(self, num_images: int) -> None:
        """Wait for the shards of all processes, and write card and metadata.

        Raises:
            ValueError: there are no images, or not as many as were labelled.
            DamagedStoreError: a shard is not what was written; the same labelling, started again, makes it anew.
        """
        if num_images == 0:
            raise ValueError(f"dataset {self.settings.dataset!r} has no images to label.")
        digest, shards = blake2b(digest_size=16), []
        for number in range(-(-num_images // self.settings.images_per_shard)):
            file = shard_file(number)
            self._wait_for(file)
            shard = self._written(number)
            if shard is None:
                raise DamagedStoreError(
                    f"{self.folder / file} is damaged: it is not what was written. Start the same labelling again: it"
                    " makes this shard anew."
                )
            digest.update(read_digests(self.folder / file).astype("<u8").tobytes())
            shards.append(shard)
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
        (self.folder / PLAN).unlink(missing_ok=True)
        for number in range(len(shards)):
            self._record(number).unlink(missing_ok=True)

    def wait(self) -> None:
        """Return once the store is finished.

        Files are watched instead of meeting at a barrier: the last shard of another process may take longer than a
        barrier waits.
        """
        self._wait_for(METADATA)

    def _wait_for(self, file: str) -> None:
        while not (self.folder / file).is_file():
            time.sleep(0.05)

    def _is_finished(self) -> bool:
        """Whether it is a store, which has to be of the same labelling."""
        if not (self.folder / METADATA).is_file():
            return False
        self._check_same(StoreMetadata.read(self.folder).settings)
        for left in (self.folder / PLAN, self.folder / LOCK, *(self.folder / "data").glob(_RECORDS)):
            left.unlink(missing_ok=True)
        return True

    def _foreign_entries(self) -> list[str]:
        """What is not left from a labelling that was killed while it wrote its plan."""
        names = [path.name for path in self.folder.iterdir()]
        return [name for name in names if name != LOCK and not name.startswith(f".{PLAN}.")]

    def _remove_damaged(self) -> None:
        """Remove shards that are not what was written, so that they are labelled anew."""
        for number in self.shards():
            if self._written(number) is None:
                path = self.folder / shard_file(number)
                logger.warning("%s is damaged, or its record is: it is made anew.", path)
                path.unlink()

    def _written(self, number: int) -> Shard | None:
        """What was recorded of a shard that is there; None if it is not that any more."""
        path = self.folder / shard_file(number)
        try:
            shard = Shard(**json.loads(self._record(number).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # the record is missing or damaged itself
            return None
        same = path.stat().st_size == shard.bytes and file_checksum(path) == shard.crc32
        return shard if same else None

    def _record(self, number: int) -> Path:
        return self.folder / "data" / f".labels-{number:05d}.json"

    def _check_same(self, settings: LabelSettings) -> None:
        difference = settings.first_difference(self.settings)
        if difference is not None:
            raise ValueError(
                f"soft_labels {str(self.folder)!r} holds another labelling: {difference}. Choose another folder, or "
                "repeat the labelling with the same settings."
            )

    def _check_finished(self, images: EncodedImages) -> None:
        """Compare number and some of the images with those of a store that is finished; a stream is not read."""
        if images.streams:
            return
        labelled = StoreMetadata.read(self.folder).num_images
        if labelled != len(images):
            raise ValueError(
                f"soft_labels {str(self.folder)!r} holds a finished labelling of {labelled} images, not of these"
                f" {len(images)}. Choose another folder."
            )
        self._check_images(images)

    def _check_images(self, images: EncodedImages) -> None:
        """Compare the first image of every shard that is written with the image that is there now."""
        for number in self.shards():
            row = number * self.settings.images_per_shard
            labelled = read_digests(self.folder / shard_file(number))[0]
            if row >= len(images) or images[row].digest != labelled:
                raise ValueError(
                    f"soft_labels {str(self.folder)!r} holds a labelling of other images: row {row} is "
                    "not the image that was labelled. Choose another folder."
                )


def _read_plan(path: Path) -> LabelSettings:
    try:
        return LabelSettings.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged or of another version of hf_vaq ({error}). Remove the folder and label anew."
        ) from error
