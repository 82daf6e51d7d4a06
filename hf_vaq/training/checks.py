"""Checks of a dataset against a model, before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

RESIZABLE = ("swin", "swinv2", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types that take images of other sizes than `config.image_size` (by windows, or by interpolating positions)."""


def check_dataset(
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    config: PretrainedConfig,
    name: str,
    *,
    hard_labels: bool = True,
) -> Tensor:
    """Refuse a dataset that `VaqTrainer` cannot train or evaluate a model on, judging by its first example.

    Args:
        dataset: with indices, or iterable.
        collate: makes a batch of a list of examples.
        config: of the model.
        name: of the dataset, for messages.
        hard_labels: whether an example has to have an integer label.

    Returns:
        The pixel values of the first example, (1, channels, height, width).

    Raises:
        ValueError: naming the dataset, the field, its value and what is accepted.
    """
    example = _first_example(dataset, name)
    fields = sorted(example) if isinstance(example, Mapping) else type(example).__name__
    batch = collate([example])
    pixel_values, labels = batch.get("pixel_values"), batch.get("labels")
    if not isinstance(pixel_values, Tensor):
        raise ValueError(
            f"{name} has no field 'pixel_values' (its examples have {fields}): expected a float tensor (channels,"
            " height, width) per example; give the dataset a transform that makes it from the image."
        )
    _check_pixel_values(pixel_values, config, name)
    if not hard_labels:
        return pixel_values
    if labels is None:
        raise ValueError(
            f"{name} has no field 'labels' or 'label' (its examples have {fields}): expected an integer per example."
        )
    _check_labels(labels, config, name)
    return pixel_values


def _first_example(dataset: Any, name: str) -> Any:
    indexable = hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)
    if indexable and len(dataset) > 0:
        return dataset[0]
    example = None if indexable else next(iter(dataset), None)
    if example is None:
        raise ValueError(f"{name} is empty: expected at least one example.")
    return example


def _check_pixel_values(pixel_values: Tensor, config: PretrainedConfig, name: str) -> None:
    shape = tuple(pixel_values.shape[1:])
    if not pixel_values.is_floating_point() or len(shape) != 3:
        raise ValueError(
            f"{name}: pixel_values of an example have type {pixel_values.dtype} and shape {shape}: expected floating"
            " point numbers of shape (channels, height, width)."
        )
    channels = getattr(config, "num_channels", None)
    if channels is not None and shape[0] != channels:
        raise ValueError(f"{name}: pixel_values have {shape[0]} channels, expected {channels} (config.num_channels).")
    size = getattr(config, "image_size", None)
    if size is None or config.model_type in RESIZABLE:
        return
    size = (size, size) if isinstance(size, int) else tuple(size)
    if shape[1:] != size:
        raise ValueError(
            f"{name}: pixel_values are {shape[1]} x {shape[2]} (height x width), expected {size[0]} x {size[1]}"
            " (config.image_size)."
        )


def _check_labels(labels: Any, config: PretrainedConfig, name: str) -> None:
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        found = (
            f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        )
        raise ValueError(f"{name}: the labels of a batch are {found}: expected one integer per example.")
    if not 0 <= labels.item() < config.num_labels:
        raise ValueError(
            f"{name}: label {labels.item()}: expected 0 to {config.num_labels - 1} (config.num_labels ="
            f" {config.num_labels})."
        )


def check_label_range(labels: Tensor, num_labels: int, step: int) -> None:
    """Refuse integer labels of a batch that are not classes, as of rows without a label (-1, -100).

    Raises:
        ValueError: naming the first one and its row.
    """
    if labels.is_floating_point():
        return
    bad = (labels < 0) | (labels >= num_labels)
    if bad.any():
        row = int(bad.flatten().nonzero()[0])
        raise ValueError(
            f"label {int(labels.flatten()[row])} in row {row} of the batch at step {step} ({int(bad.sum())} of its"
            f" {labels.numel()} rows): expected 0 to {num_labels - 1} (config.num_labels = {num_labels})."
        )
