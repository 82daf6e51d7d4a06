"""The datasets of a run: training (augmented) and evaluation (as the image processor makes them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..data import (
    ImageClassificationDataset,
    dataset_label_names,
    evaluation_transform,
    held_out_split,
    load_dataset,
    model_labels,
    prepare_columns,
    select_split,
    training_transform,
)
from ..recipe import DataArguments


@dataclass(frozen=True)
class Splits:
    """Both splits of a data set with the two columns that are used, checked."""

    arguments: DataArguments
    train: datasets.Dataset
    held_out: datasets.Dataset
    held_out_name: str

    @classmethod
    def load(cls, arguments: DataArguments) -> Splits:
        """Load the data set that the arguments name.

        Raises:
            ValueError: data set, split or column missing, or an empty split.
        """
        dataset = load_dataset(arguments.dataset, arguments.dataset_config)
        name = arguments.eval_split or held_out_split(dataset)
        columns = (arguments.image_column, arguments.label_column)
        train = prepare_columns(select_split(dataset, arguments.train_split), *columns)
        return cls(arguments, train, prepare_columns(select_split(dataset, name), *columns), name)

    def label_names(self) -> list[str]:
        """Return the names of the classes for a new model."""
        return dataset_label_names(self.train, self.arguments.label_column)

    def training_set(self, id2label: Mapping[int, str], image_processor: Any) -> ImageClassificationDataset:
        """Return the training images, varied as the arguments say."""
        transform = training_transform(image_processor, self.arguments.augmentation())
        return self._dataset(self.train, id2label, transform)

    def labelled_images(self) -> datasets.Dataset:
        """Return the training images as they are, for stored soft labels."""
        return self.train.select_columns([self.arguments.image_column])

    def evaluation_set(self, id2label: Mapping[int, str], image_processor: Any) -> ImageClassificationDataset:
        """Return the held-out images."""
        return self._dataset(self.held_out, id2label, evaluation_transform(image_processor))

    def _dataset(
        self, split: datasets.Dataset, id2label: Mapping[int, str], transform: Any
    ) -> ImageClassificationDataset:
        labels = model_labels(split, self.arguments.label_column, id2label)
        return ImageClassificationDataset(split, labels, transform, image_column=self.arguments.image_column)
