"""The datasets of a run: training (augmented) and evaluation (as the image processor makes them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..data import (
    ImageClassificationDataset,
    LabelledSplit,
    dataset_label_names,
    load_dataset,
    training_transform,
)
from ..recipe import DataArguments


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
        dataset = load_dataset(arguments.dataset, arguments.dataset_config)
        columns = (arguments.image_column, arguments.label_column)
        held_out = LabelledSplit.select(dataset, arguments.eval_split, *columns)
        return cls(arguments, LabelledSplit.select(dataset, arguments.train_split, *columns), held_out)

    @property
    def held_out_name(self) -> str:
        """Name of the split that is evaluated."""
        return self.held_out.name

    def label_names(self) -> list[str]:
        """Return the names of the classes for a new model."""
        return dataset_label_names(self.train.rows, self.arguments.label_column)

    def training_set(self, id2label: Mapping[int, str], image_processor: Any) -> ImageClassificationDataset:
        """Return the training images, varied as the arguments say."""
        return self.train.dataset(id2label, training_transform(image_processor, self.arguments.augmentation()))

    def labelled_images(self) -> datasets.Dataset:
        """Return the training images as they are, for stored soft labels."""
        return self.train.rows.select_columns([self.arguments.image_column])

    def evaluation_set(self, id2label: Mapping[int, str], image_processor: Any) -> ImageClassificationDataset:
        """Return the held-out images."""
        return self.held_out.evaluation_set(id2label, image_processor)
