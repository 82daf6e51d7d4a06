"""Training on the stored soft labels of many crops instead of on a teacher's answers."""

from __future__ import annotations

import os
from typing import Any

from transformers import PretrainedConfig

from ..soft_labels.dataset import SoftLabelDataset
from ..soft_labels.store import SoftLabelStore
from .arguments import VaqTrainingArguments
from .preprocessing import measure_normalization
from .teacher import match_labels


def build_soft_label_dataset(
    images: Any,
    soft_labels: SoftLabelStore | str | os.PathLike,
    config: PretrainedConfig,
    processor: Any,
    args: VaqTrainingArguments,
) -> SoftLabelDataset:
    """Connect images, their stored labels and the student, and check that training on them makes sense.

    Args:
        images: a `datasets.Dataset` with one image column: those that were labelled, in that order.
        soft_labels: the store, or its folder or Hub id.
        config: of the student.
        processor: image processor of the student; size and normalisation of its pixel values are taken from it.
        args: of the trainer.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """
    store = soft_labels if isinstance(soft_labels, SoftLabelStore) else SoftLabelStore.load(soft_labels)
    check_loss_arguments(args)
    if images is None:
        raise ValueError("soft_labels are given without a train_dataset: expected the images that they belong to.")
    if processor is None:
        raise ValueError(
            "soft_labels are given without the student's image processor: pass it as processing_class, for the size "
            "and normalisation of the crops."
        )
    order = _label_order(store, config)
    normalization = measure_normalization(processor, getattr(config, "num_channels", 3))
    size = normalization.size or config.image_size
    dataset = SoftLabelDataset(
        images,
        store,
        num_crops=args.num_crops,
        normalization=normalization,
        size=(size, size) if isinstance(size, int) else tuple(size),
        recovery=args.soft_label_recovery,
        seed=args.data_seed,
        label_order=order,
    )
    batch, total = args.per_device_train_batch_size, args.train_batch_size * args.world_size
    if batch % args.num_crops:
        raise ValueError(
            f"per_device_train_batch_size={batch!r}: expected a multiple of num_crops={args.num_crops}, because the "
            "batch is counted in crops and the crops of an image enter it together."
        )
    if total > len(dataset):
        raise ValueError(
            f"per_device_train_batch_size={batch!r}: the batch of all processes has {total} crops, an epoch only "
            f"{len(dataset)}; expected fewer."
        )
    return dataset


def check_loss_arguments(args: VaqTrainingArguments) -> None:
    """Refuse arguments that stored soft labels leave no place for.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """
    for name, accepted, reason in (
        ("hard_label_weight", 0, "stored labels are the only ones in the loss"),
        ("distillation_temperature", 1, "the probabilities were stored at temperature 1"),
        ("label_smoothing_factor", 0, "stored labels are soft already"),
    ):
        if getattr(args, name) != accepted:
            raise ValueError(f"{name}={getattr(args, name)!r}: expected {accepted} with soft_labels: {reason}.")


def _label_order(store: SoftLabelStore, config: PretrainedConfig) -> list[int] | None:
    names = dict(enumerate(store.settings.label_names))
    if len(names) != config.num_labels:
        raise ValueError(
            f"soft_labels {str(store.folder)!r} have {len(names)} classes, the model {config.num_labels} "
            "(config.num_labels): expected the same classes."
        )
    # A configuration gives its labels in the same form as a teacher's.
    return match_labels(config, PretrainedConfig(id2label=names, label2id={name: i for i, name in names.items()}))
