"""The datasets of a run: training (augmented) and evaluation (as the image processor makes them)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..data import (
    ImageClassificationDataset,
    LabelledSplit,
    LabelLookup,
    dataset_label_names,
    load_dataset,
    training_transform,
)
from ..recipe import DataArguments
from ..training.streaming import TrainingStream


@dataclass(frozen=True)
class Splits:
    """Both splits of a data set with the two columns that are used, checked."""

    arguments: DataArguments
    train: LabelledSplit
    held_out: LabelledSplit

    @classmethod
    def load(cls, arguments: DataArguments) -> Splits:
        """Load the data set that the arguments name.

        Raises:
            ValueError: data set, split or column missing, or an empty split.
        """
        dataset = load_dataset(arguments.dataset, arguments.dataset_config, streaming=arguments.dataset_streaming)
        columns = (arguments.image_column, arguments.label_column)
        held_out = LabelledSplit.select(dataset, arguments.eval_split, *columns)
        if held_out.streams:
            held_out = dataclasses.replace(held_out, rows=_kept(held_out.rows, arguments.image_column))
        return cls(arguments, LabelledSplit.select(dataset, arguments.train_split, *columns), held_out)

    @property
    def held_out_name(self) -> str:
        """Name of the split that is evaluated."""
        return self.held_out.name

    def label_names(self) -> list[str]:
        """Return the names of the classes for a new model."""
        return dataset_label_names(self.train.rows, self.arguments.label_column)

    def training_set(
        self, id2label: Mapping[int, str], image_processor: Any, seed: int = 0
    ) -> ImageClassificationDataset | TrainingStream:
        """Return the training images, varied as the arguments say; `seed` decides the order of a stream."""
        transform = training_transform(image_processor, self.arguments.augmentation())
        if not self.train.streams:
            return self.train.dataset(id2label, transform)
        feature = self.train.rows.features[self.train.label_column]
        return TrainingStream(
            self.train.rows,
            LabelLookup(feature, self.train.label_column, id2label),
            transform,
            image_column=self.train.image_column,
            label_column=self.train.label_column,
            seed=seed,
            buffer_size=self.arguments.shuffle_buffer,
        )

    def labelled_images(self) -> datasets.Dataset:
        """Return the training images as they are, for stored soft labels."""
        return self.train.rows.select_columns([self.arguments.image_column])

    def evaluation_set(self, id2label: Mapping[int, str], image_processor: Any) -> ImageClassificationDataset:
        """Return the held-out images."""
        return self.held_out.evaluation_set(id2label, image_processor)


def _kept(stream: datasets.IterableDataset, image_column: str) -> datasets.Dataset:
    """Return a stream as a data set that is stored among those that `datasets` keeps; its files are not decoded."""
    encoded = stream.cast_column(image_column, datasets.Image(decode=False))

    def rows() -> Iterator[dict[str, Any]]:
        yield from encoded

    return datasets.Dataset.from_generator(rows, features=encoded.features).cast_column(image_column, datasets.Image())
