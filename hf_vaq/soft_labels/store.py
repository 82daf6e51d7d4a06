"""A finished store of soft labels: Arrow files that are read image by image."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa

from .metadata import METADATA, LabelSettings, Shard, StoreMetadata
from .records import ImageLabels
from .values import impossible_label

PLAN = ".labeling.json"
_OPEN_SHARDS = 64


class DamagedStoreError(ValueError):
    """A file of a store is missing or damaged; the message names it."""


class SoftLabelStore:
    """Labelled crops of the images of a data set, on disk.

    Reading an image reads the record batch it stands in (about 64 KiB) and nothing else; what the reader keeps in
    memory does not grow with the store. A store may be read by several processes at once, and be sent to worker
    processes.

    Args:
        folder: what `label_dataset` or `hf-vaq label` wrote.

    Raises:
        ValueError: the folder is no store, or its labelling is not finished.
        DamagedStoreError: a file is missing or has another size than it should.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / METADATA).is_file():
            if (self.folder / PLAN).is_file():
                raise ValueError(
                    f"soft_labels {str(folder)!r} is not finished: its labelling was interrupted. Start the same "
                    "'hf-vaq label' again; it goes on where it stopped."
                )
            raise ValueError(f"soft_labels {str(folder)!r} holds no store of soft labels: it has no {METADATA}.")
        self.metadata = StoreMetadata.read(self.folder)
        self._layout = self.settings.layout
        self._readers: OrderedDict[int, pa.ipc.RecordBatchFileReader] = OrderedDict()
        self._verified = False
        for shard in self.metadata.shards:
            self._check_size(shard)

    @classmethod
    def load(cls, name: str | os.PathLike, revision: str | None = None) -> SoftLabelStore:
        """Open a store by folder or, where there is no such folder, by its id on the Hub, from which it is downloaded.

        Raises:
            ValueError: there is neither such a folder nor such a data set on the Hub.
        """
        if Path(name).is_dir():
            return cls(name)
        try:
            return cls(huggingface_hub.snapshot_download(str(name), repo_type="dataset", revision=revision))
        except (OSError, huggingface_hub.errors.HFValidationError) as error:
            first = " ".join(str(error).split()).split(". ")[0]
            raise ValueError(
                f"soft_labels is {str(name)!r}: there is no such folder ('hf-vaq label RECIPE' makes it), and as a "
                f"data set on the Hub it cannot be loaded: {first}"
            ) from error

    @property
    def settings(self) -> LabelSettings:
        """How the labels were made."""
        return self.metadata.settings

    @property
    def num_classes(self) -> int:
        """Classes of the teacher."""
        return len(self.settings.label_names)

    def __len__(self) -> int:
        return self.metadata.num_images

    def __getitem__(self, image: int) -> ImageLabels:
        """Return the labelled crops of one image.

        Raises:
            IndexError: there is no such image.
            DamagedStoreError: the shard it stands in is damaged, or holds what no teacher says (looked for unless
                `verify` has done so).
        """
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of a store with {len(self)} images.")
        index, row = divmod(image, self.settings.images_per_shard)
        batch, row = divmod(row, self._layout.images_per_batch)
        shard = self.metadata.shards[index]
        try:
            stored = self._reader(index).get_batch(batch)
            labels = self._layout.decode(stored, row)
            if not self._verified:
                self._check_values(labels, stored.column("image").to_numpy()[row], image)
            return labels
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise DamagedStoreError(f"{self._path(shard)} is damaged (image {image}): {error}") from error

    def verify(self) -> None:
        """Read every shard, compare it with its checksum, and see whether its labels can be.

        Raises:
            DamagedStoreError: naming the first damaged shard, or the first crop whose box, classes or probabilities
                cannot be.
        """
        fingerprint, first = blake2b(digest_size=16), 0
        for shard in self.metadata.shards:
            self._check_size(shard)
            found = file_checksum(self._path(shard))
            if found != shard.crc32:
                raise DamagedStoreError(
                    f"{self._path(shard)} is damaged: its CRC-32 is {found:08x}, expected {shard.crc32:08x}. Copy it "
                    "again, or remove the store and label anew."
                )
            try:
                with pa.OSFile(str(self._path(shard))) as file:
                    reader = pa.ipc.open_file(file)
                    for batch in map(reader.get_batch, range(reader.num_record_batches)):
                        labels = self._layout.decode(batch)
                        self._check_values(labels, batch.column("image").to_numpy(), first)
                        fingerprint.update(labels.digest.astype("<u8").tobytes())
                        first += batch.num_rows
            except (pa.ArrowException, OSError, ValueError, IndexError) as error:
                raise DamagedStoreError(f"{self._path(shard)} is damaged: {error}") from error
        if fingerprint.hexdigest() != self.metadata.source_fingerprint:
            raise DamagedStoreError(
                f"{self.folder / METADATA} is damaged: its source_fingerprint is not that of the images in the shards."
            )
        self._verified = True

    def digests(self) -> np.ndarray:
        """Return what every image is recognised by, in order, uint64 (images,)."""
        return np.concatenate([read_digests(self._path(shard)) for shard in self.metadata.shards])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        overwrite: bool = False,
    ) -> str:
        """Publish the store with its card as a data set on the Hub, in one commit.

        Args:
            repo_id: "user/name", or "name".
            private: of a repository that is made anew.
            token: of the Hub; None takes that of this machine.
            revision: branch, made if need be.
            create_pr: propose it as a pull request.
            commit_message: first line of the commit.
            overwrite: publish where something else lies, too.

        Returns:
            The address of the commit.

        Raises:
            hf_vaq.hub.HubError: it cannot be published there; nothing is then.
            DamagedStoreError: a shard is damaged.
        """
        from ..hub.labels import push_labels
        from ..hub.publishing import DATASET, Target

        target = Target(
            repo_id,
            repo_type=DATASET,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            token=token,
            overwrite=overwrite,
        )
        return str(push_labels(self, target).commit_url)

    def _check_values(self, labels: ImageLabels, numbers: np.ndarray, first: int) -> None:
        """Look at the labels of one image or several, and at their numbers, which go from `first` on."""
        if not np.array_equal(numbers, first + np.arange(numbers.size).reshape(numbers.shape)):
            raise ValueError(f"its images are not numbered from {first} on")
        if (found := impossible_label(labels, self.num_classes)) is not None:
            (*row, crop), what = found
            raise ValueError(f"image {first + sum(row)}, crop {crop}: {what}")

    def _path(self, shard: Shard) -> Path:
        return self.folder / shard.file

    def _check_size(self, shard: Shard) -> None:
        path = self._path(shard)
        if not path.is_file():
            raise DamagedStoreError(f"{path} is missing from the store of soft labels.")
        if path.stat().st_size != shard.bytes:
            raise DamagedStoreError(f"{path} is damaged: it has {path.stat().st_size} bytes, expected {shard.bytes}.")

    def _reader(self, index: int) -> pa.ipc.RecordBatchFileReader:
        if index in self._readers:
            self._readers.move_to_end(index)
        else:
            # Not memory-mapped: pages of a map would count as the reader's memory, and a file that is cut short while
            # it is in use would kill the process instead of raising an error.
            self._readers[index] = pa.ipc.open_file(pa.OSFile(str(self._path(self.metadata.shards[index]))))
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        return self._readers[index]

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay with the process that opened them.
        return self.__dict__ | {"_readers": OrderedDict()}


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file, read piece by piece."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def read_digests(path: Path) -> np.ndarray:
    """Return the digests of the images of one shard, uint64 (rows,).

    Raises:
        DamagedStoreError: the shard is damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[1]))
            batches = [reader.get_batch(index).column(0).to_numpy() for index in range(reader.num_record_batches)]
        return np.concatenate(batches)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DamagedStoreError(f"{path} is damaged: {error}") from error
