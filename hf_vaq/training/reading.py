"""How `VaqTrainer` reads its datasets: checked first, and with random transforms that a resumed run repeats."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset
from transformers import Trainer
from transformers.utils import logging

from ..calibration import calibrate, is_calibrated
from ..soft_labels.dataset import SoftLabelDataset
from .arguments import VaqTrainingArguments
from .checks import check_dataset
from .seeding import EpochSetter, SeededDataset, seeded

logger = logging.get_logger(__name__)


class ReadsSeededBatches(Trainer):
    """The part of `VaqTrainer` that reads: for checks, for calibration, and for training.

    What random transforms of a dataset with indices draw depends on (`args.data_seed`, epoch, index) only. A
    `SoftLabelDataset` is seeded itself.
    """

    args: VaqTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._epoch_setter = EpochSetter()
        self.add_callback(self._epoch_setter)

    def _check_datasets(self) -> Tensor:
        """Refuse datasets that the model cannot be trained or evaluated on, judging by their first examples.

        Returns:
            The pixel values of the first training example, (1, channels, height, width).

        Raises:
            ValueError: if a dataset is missing, empty, lacks pixel values or labels, or does not fit the model.
        """
        if self.train_dataset is None:
            raise ValueError("VaqTrainer: training requires a train_dataset.")
        collate = self._get_collator_with_removed_columns(self.data_collator)
        with seeded(self.args.data_seed):
            stored = isinstance(self.train_dataset, SoftLabelDataset)
            if stored:
                self.train_dataset.check(shards=self.args.local_process_index == 0)
            pixel_values = check_dataset(
                self.train_dataset, collate, self.model.config, "train_dataset", hard_labels=not stored
            )
            if self.eval_dataset is not None:
                parts = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
                for key, dataset in parts.items():
                    name = f"eval_dataset[{key!r}]" if key else "eval_dataset"
                    check_dataset(dataset, collate, self.model.config, name)
        return pixel_values

    def calibrate(self) -> None:
        """Set the activation scales, where the model has none yet, from training images.

        Their choice depends on `args.data_seed` only; it is the same on every process. `train` does it by itself.
        """
        if is_calibrated(self.model):
            return
        generator = torch.Generator().manual_seed(self.args.data_seed)
        dataset, count = self.train_dataset, self.args.calibration_batches * self.args.per_device_train_batch_size
        if _has_indices(dataset):
            indices = torch.randperm(len(dataset), generator=generator)[:count].tolist()
            dataset = Subset(SeededDataset(dataset, self.args.data_seed), indices)
        loader = DataLoader(
            dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
        )
        logger.info(f"Calibrating activation scales on {self.args.calibration_batches} training batches.")
        with seeded(self.args.data_seed):
            calibrate(self.model, loader, max_batches=self.args.calibration_batches)

    def _get_dataloader(
        self, dataset: Any, description: str, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> Any:
        if isinstance(dataset, SoftLabelDataset):
            # It is seeded itself, and reads the crops of an image together.
            self._epoch_setter.dataset = dataset
        elif _has_indices(dataset):
            if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
                dataset = self._remove_unused_columns(dataset, description=description)
            # Columns that only a transform reads are removed after it, by the collator: see the base class.
            dataset = SeededDataset(dataset, self.args.data_seed)
            if is_training:
                self._epoch_setter.dataset = dataset
        return super()._get_dataloader(dataset, description, *args, is_training=is_training, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, SoftLabelDataset):
            # The dataset shuffles images; the crops of one have to stay together.
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "soft_labels" not in self._signature_columns:
            self._signature_columns.append("soft_labels")


def _has_indices(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
