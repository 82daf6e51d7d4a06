"""From the name of a data set to images with the model's labels: the steps that training and evaluation share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from .dataset import ImageClassificationDataset
from .labels import LabelLookup, model_labels
from .loading import held_out_split, prepare_columns, select_split
from .side_by_side import ImageStream, SideBySideImages, View
from .transforms import ImageTransform, evaluation_transform


@dataclass(frozen=True)
class LabelledSplit:
    """One split of a data set with the two columns that are used, checked; see `select`.

    Attributes:
        rows: the split, or a stream of it, with these two columns.
        name: of the split, with its slice: "validation", "test[:100]".
        image_column, label_column: names of the columns.
    """

    rows: datasets.Dataset | datasets.IterableDataset
    name: str
    image_column: str
    label_column: str

    @classmethod
    def select(
        cls,
        dataset: datasets.DatasetDict | datasets.IterableDatasetDict,
        split: str | None,
        image_column: str,
        label_column: str,
    ) -> LabelledSplit:
        """Take a split of what `load_dataset` returned; None takes the held-out one.

        Raises:
            ValueError: split or column missing, or an empty split.
        """
        name = split or held_out_split(dataset)
        rows = prepare_columns(select_split(dataset, name), image_column, label_column)
        return cls(rows, name, image_column, label_column)

    @property
    def streams(self) -> bool:
        """Whether the rows come one after the other and are not kept."""
        return isinstance(self.rows, datasets.IterableDataset)

    @property
    def num_images(self) -> int | None:
        """Number of rows; of a stream what the data set states about itself, None if nothing."""
        if not self.streams:
            return len(self.rows)
        stated = (self.rows.info.splits or {}).get(str(self.rows.split))
        return stated.num_examples or None if stated is not None else None

    def limited(self, max_images: int | None, seed: int = 0) -> LabelledSplit:
        """Return at most so many rows: chosen at random (but in their order), or the first ones of a stream.

        Raises:
            ValueError: `max_images` below 1.
        """
        if max_images is None:
            return self
        if max_images < 1:
            raise ValueError(f"max_images is {max_images!r}; accepted: 1 and above.")
        if self.streams:
            return dataclasses.replace(self, rows=self.rows.take(max_images))
        if max_images >= len(self.rows):
            return self
        chosen = np.random.default_rng(seed).choice(len(self.rows), max_images, replace=False)
        return dataclasses.replace(self, rows=self.rows.select(np.sort(chosen)))

    def dataset(self, id2label: Mapping[int, str], transform: ImageTransform) -> ImageClassificationDataset:
        """Return the images, transformed, with the labels of a model.

        Raises:
            ValueError: labels that do not match the model's.
        """
        labels = model_labels(self.rows, self.label_column, id2label)
        return ImageClassificationDataset(self.rows, labels, transform, image_column=self.image_column)

    def evaluation_set(self, id2label: Mapping[int, str], image_processor: Any) -> ImageClassificationDataset:
        """Return the images as a model's image processor makes them.

        Raises:
            ValueError: labels that do not match the model's.
        """
        return self.dataset(id2label, evaluation_transform(image_processor))

    def side_by_side(self, models: Sequence[tuple[Mapping[int, str], Any]]) -> torch.utils.data.Dataset:
        """Return the images for several models at once, each read and decoded once, see `SideBySideImages`.

        Args:
            models: the `id2label` and the image processor of each.

        Raises:
            ValueError: labels that do not match those of a model.
        """
        transforms = _shared_transforms([processor for _, processor in models])
        if self.streams:
            feature = self.rows.features[self.label_column]
            lookups = [LabelLookup(feature, self.label_column, id2label) for id2label, _ in models]
            views = [View(transform, lookup) for transform, lookup in zip(transforms, lookups, strict=True)]
            return ImageStream(self.rows, views, image_column=self.image_column, label_column=self.label_column)
        labels = [model_labels(self.rows, self.label_column, id2label) for id2label, _ in models]
        return SideBySideImages(self.rows, labels, transforms, image_column=self.image_column)


def _shared_transforms(processors: Sequence[Any]) -> list[ImageTransform]:
    """One transform a processor; the same object where the processors do the same."""
    settings = [(type(processor), processor.to_dict()) for processor in processors]
    first = [settings.index(one) for one in settings]
    transforms = {index: evaluation_transform(processors[index]) for index in set(first)}
    return [transforms[index] for index in first]
