"""Label a data set: a teacher's view of many crops of every image, once and for all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..privacy import public
from ..processes import on_main_process
from .crops import INTERPOLATIONS, CropSampling, cut_crop, draw_crops
from .images import EncodedImage, EncodedImages
from .metadata import LabelSettings
from .pipeline import Pipeline
from .records import ImageLabels
from .store import SoftLabelStore
from .teacher import LabelingTeacher
from .unfinished import UnfinishedStore

CROPS_PER_SHARD = 524_288
"""About 15 MB of top-5 labels: what a killed process has to do again, at most."""

_FEWEST_SHARDS = 32


def label_dataset(
    split: datasets.Dataset | datasets.IterableDataset,
    teacher: PreTrainedModel | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    image_column: str = "image",
    crops_per_image: int = 500,
    top_k: int | None = None,
    sampling: CropSampling | None = None,
    teacher_processor: Any = None,
    batch_size: int = 64,
    dtype: str = "float32",
    images_per_shard: int | None = None,
    num_workers: int = 0,
    dataset_name: str | None = None,
    split_name: str | None = None,
    progress: bool = False,
) -> SoftLabelStore:
    """Label crops of every image of a split with a teacher, and store what it says.

    With several processes (`accelerate launch`, `torchrun`) every one of them calls this function; they share the
    shards, and the folder must be one that all of them see. The content of the store does not depend on their number.
    A labelling that was stopped, by whatever means, goes on when the function is called again with the same
    arguments; the store is then the one that an uninterrupted run makes. Called for a finished store it returns it.

    Args:
        split: the images. A stream (`datasets.load_dataset(..., streaming=True)`) is read in order, once; to train
            from the store the same split has to be at hand with rows that can be read in any order.
        teacher: see `LabelingTeacher`.
        folder: of the store; new, empty, or holding the same labelling, finished or not.
        image_column: column of the images.
        crops_per_image: number of crops; any number, published: 500.
        top_k: the most probable classes to store of each crop; None, or the number of classes, for all.
        sampling: how crops are drawn; the published way if not given.
        teacher_processor: see `LabelingTeacher`.
        batch_size: crops in a forward pass.
        dtype: in which the teacher runs: "float32", "bfloat16" or "float16".
        images_per_shard: rows of a shard; if not given as many as make about half a million crops, fewer for a
            small data set.
        num_workers: threads that decode images and cut crops; 0 does that between the forward passes.
        dataset_name: what the card calls the images; if not given, what `datasets` calls them.
        split_name: the same for the split.
        progress: whether to show a bar with an estimate.

    Returns:
        The finished store, on every process.

    Raises:
        ValueError: bad arguments, or a folder that holds something else; before any labelling. Or a teacher whose
            probabilities are not finite, naming the image. Or another process that labels into the folder.
        ImageDecodeError: an image cannot be read, naming it.
    """
    for name, value, least in (("crops_per_image", crops_per_image, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name} is {value!r}; accepted: {least} or more.")
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers!r}; accepted: 0 or more.")
    sampling = sampling or CropSampling()
    state = _process_state()
    images = EncodedImages(split, image_column)
    model = LabelingTeacher(teacher, teacher_processor, state.device, dtype)
    num_classes = len(model.label_names)
    if top_k is not None and not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k is {top_k!r}; accepted: 1 to {num_classes} (the teacher's classes), or none for all.")
    info = split.info
    settings = LabelSettings(
        teacher=model.name,
        teacher_revision=model.revision,
        teacher_fingerprint=model.fingerprint,
        teacher_image_size=model.image_size,
        teacher_dtype=dtype,
        label_names=model.label_names,
        crops_per_image=crops_per_image,
        top_k=None if top_k == num_classes else top_k,
        crop_scale=sampling.scale,
        crop_ratio=sampling.ratio,
        horizontal_flip=sampling.horizontal_flip,
        seed=sampling.seed,
        interpolation=model.interpolation,
        dataset=public(dataset_name or info.dataset_name or "in memory"),
        dataset_config=None if info.config_name in (None, "default") else info.config_name,
        split=split_name or (None if split.split is None else str(split.split)),
        image_column=image_column,
        batch_size=batch_size,
        images_per_shard=images_per_shard or _images_per_shard(images, crops_per_image, batch_size),
    )
    labeling = _Labeling(settings, Path(folder), images, model, sampling, state)
    return labeling.run(num_workers, progress)


@dataclass(frozen=True)
class _Prepared:
    """An image with its crops: what is needed to label it, and what is stored beside the labels."""

    row: int
    digest: int
    boxes: np.ndarray
    flips: np.ndarray
    pixels: torch.Tensor


class _Labeling:
    """One labelling on one of several processes."""

    def __init__(
        self,
        settings: LabelSettings,
        folder: Path,
        images: EncodedImages,
        teacher: LabelingTeacher,
        sampling: CropSampling,
        state: PartialState,
    ):
        self.settings = settings
        self.store = UnfinishedStore(folder, settings)
        self.images = images
        self.teacher = teacher
        self.sampling = sampling
        self.state = state
        self.rows_seen = 0

    def run(self, num_workers: int, progress: bool) -> SoftLabelStore:
        with ExitStack() as held:
            if not on_main_process(lambda: self.store.claim(self.images, held)):
                self._label(self._missing_shards(), num_workers, progress)
                if self.state.is_main_process:
                    self.store.finish(self.rows_seen if self.images.streams else len(self.images))
        self.store.wait()
        return SoftLabelStore(self.store.folder)

    def _missing_shards(self) -> Iterable[int]:
        """Numbers of the shards that this process has to make, ascending; without end for a stream."""
        finished = set(self.store.shards())
        rank, processes = self.state.process_index, self.state.num_processes
        numbers: Iterable[int]
        if self.images.streams:
            # Nobody knows where a stream ends.
            numbers = range(rank, 2**40, processes)
        else:
            numbers = range(rank, _ceil(len(self.images), self.settings.images_per_shard), processes)
        return (number for number in numbers if number not in finished)

    def _label(self, missing: Iterable[int], num_workers: int, progress: bool) -> None:
        size, crops = self.settings.images_per_shard, self.settings.crops_per_image
        if self.images.streams:
            rows_expected = self.images.expected_length
            total = None if rows_expected is None else _ceil(rows_expected, self.state.num_processes) * crops
        else:
            missing = list(missing)
            total = sum(min(size, len(self.images) - number * size) for number in missing) * crops
        wanted = self._stream_rows(missing) if self.images.streams else self._rows(missing)
        ranks = f", process 1 of {self.state.num_processes}" if self.state.num_processes > 1 else ""
        bar = tqdm(
            total=total,
            unit="crop",
            unit_scale=True,
            desc=f"labelling{ranks}",
            disable=not (progress and self.state.is_main_process),
        )
        with bar, Pipeline(self._prepare, num_workers) as pipeline:
            for number, shard in groupby(pipeline.run(wanted), key=lambda prepared: prepared.row // size):
                rows: list[ImageLabels] = []
                # What is labelled together begins and ends with the shard, so that it never depends on where a run
                # was stopped: the teacher's last bits may depend on it.
                while group := list(islice(shard, max(1, self.settings.batch_size // crops))):
                    rows += self._ask_teacher(group)
                    bar.update(len(group) * crops)
                self.store.write_shard(number, rows)

    def _rows(self, missing: Iterable[int]) -> Iterator[EncodedImage]:
        size = self.settings.images_per_shard
        for number in missing:
            for row in range(number * size, min((number + 1) * size, len(self.images))):
                yield self.images[row]

    def _stream_rows(self, missing: Iterable[int]) -> Iterator[EncodedImage]:
        """The rows of this process's shards out of a stream, which is read to its end."""
        size = self.settings.images_per_shard
        numbers = iter(missing)
        number = next(numbers)
        # All shards of a stream before its first missing one are there; every process may begin behind them.
        finished = set(self.store.shards())
        first = next(number for number in count() if number not in finished)
        # A last shard that is not full ends the stream; it is read again for the number of its rows.
        first = max(0, first - 1) * size
        self.rows_seen = first
        for image in self.images.stream(first):
            self.rows_seen += 1
            while number < image.row // size:
                number = next(numbers)
            if number == image.row // size:
                yield image

    def _prepare(self, image: EncodedImage) -> _Prepared:
        decoded = image.decode()
        boxes, flips = draw_crops(
            self.sampling, image.row, self.settings.crops_per_image, decoded.width, decoded.height
        )
        pixels = self._cut(decoded, boxes, flips)
        return _Prepared(image.row, image.digest, boxes, flips, torch.from_numpy(pixels))

    def _cut(self, image: Image.Image, boxes: np.ndarray, flips: np.ndarray) -> np.ndarray:
        resample = INTERPOLATIONS[self.settings.interpolation]
        size = self.settings.teacher_image_size
        return np.stack([cut_crop(image, box, flip, size, resample) for box, flip in zip(boxes, flips, strict=True)])

    def _ask_teacher(self, group: list[_Prepared]) -> list[ImageLabels]:
        pixels = torch.cat([prepared.pixels for prepared in group])
        crops = self.settings.crops_per_image
        probabilities, classes = [], []
        for batch in pixels.split(self.settings.batch_size):
            answer = self.teacher.probabilities(batch)
            if self.settings.top_k is not None:
                answer, indices = answer.topk(self.settings.top_k)
                classes.append(indices.cpu())
            probabilities.append(answer.half().cpu())
        stored = torch.cat(probabilities).reshape(len(group), crops, -1).numpy()
        indices = torch.cat(classes).reshape(len(group), crops, -1).numpy() if classes else [None] * len(group)
        for prepared, values in zip(group, stored, strict=True):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"teacher {self.teacher.name!r} answers a crop of image {prepared.row} with probabilities that "
                    "are not finite; with float16 weights, bfloat16 or float32 may help (dtype)."
                )
        return [
            ImageLabels(prepared.boxes, prepared.flips, index, values, prepared.digest)
            for prepared, index, values in zip(group, indices, stored, strict=True)
        ]


def _process_state() -> PartialState:
    """Join the processes that were launched; on a machine without accelerator as well.

    Raises:
        ValueError: they are not joined, so that each would do all the work in the same folder.
    """
    # Without cpu=True accelerate joins no processes on a machine that has nothing but a CPU.
    state = PartialState() if PartialState._shared_state else PartialState(cpu=not torch.accelerator.is_available())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise ValueError(
            f"WORLD_SIZE is {launched}, and accelerate was set up for {state.num_processes} processes before. On CPUs "
            "set use_cpu, or make accelerate's PartialState(cpu=True) first."
        )
    return state


def _images_per_shard(images: EncodedImages, crops: int, batch_size: int) -> int:
    most = max(1, CROPS_PER_SHARD // crops)
    if images.streams:
        return most
    # A small data set is cut finer, so that every process has work and little of it is lost; but a batch fits in.
    return max(1, min(most, max(_ceil(len(images), _FEWEST_SHARDS), _ceil(batch_size, crops))))


def _ceil(count: int, size: int) -> int:
    return -(-count // size)
