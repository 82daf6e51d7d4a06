"""Calibration: the first scales of activations, from training images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .integration.arguments import check_module
from .nn import ActivationQuantizer, ActivationStatistics, UncalibratedError, activation_quantizers


def is_calibrated(model: nn.Module) -> bool:
    """Whether every activation quantizer of `model` has its scale."""
    return all(quantizer.is_calibrated() for _, quantizer in activation_quantizers(model))


def check_calibrated(model: nn.Module) -> None:
    """Refuse a model whose activation scales were never set.

    Raises:
        UncalibratedError: naming the first quantizer without a scale.
    """
    for name, quantizer in activation_quantizers(model):
        if not quantizer.is_calibrated():
            raise UncalibratedError(
                f"{name!r} has no scale yet: call hf_vaq.calibrate(model, dataloader) with training images, or train"
                " the model, before it is evaluated or packed."
            )


@torch.no_grad()
def calibrate(model: nn.Module, dataloader: Iterable[Any], max_batches: int | None = None) -> None:
    """Set the activation scales from images.

    The images pass through the model with quantized weights and unquantized activations; every quantizer gathers a
    histogram of what it sees, and takes the scale of least squared error for it, see `least_squares_fit`. Use training
    images: calibrating on validation images would leak them into the model. With several processes (torch.distributed
    initialised) call it on every one of them, each with its share of the images; the scales are averaged and equal
    everywhere.

    Args:
        model: a quantized model in training form.
        dataloader: batches: mappings with "pixel_values", or tensors, (batch, channels, height, width).
        max_batches: number of batches to use; all if not given.

    Raises:
        ValueError: if the model has no activation quantizers, there is no batch, or activations are not finite.
    """
    check_module(model, "calibrate")
    quantizers = dict(activation_quantizers(model))
    if not quantizers:
        raise ValueError(
            f"{type(model).__name__} has no activation quantizers in training form to calibrate: it is in full"
            " precision, packed, or quantized with activation_bits=None."
        )
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches={max_batches}: expected at least 1.")
    device = next(model.parameters()).device
    with _gathering_statistics(model, quantizers):
        batches = 0
        for batch in islice(dataloader, max_batches):
            model(pixel_values=_pixel_values(batch).to(device))
            batches += 1
        if not batches:
            raise ValueError("the calibration dataloader yields no batch.")
        for name, quantizer in quantizers.items():
            if quantizer.statistics is None or quantizer.statistics.limit is None:
                raise ValueError(f"{name!r} saw no activation during calibration: its module is never called.")
            quantizer.calibrate_from(quantizer.statistics)


@contextmanager
def _gathering_statistics(model: nn.Module, quantizers: Mapping[str, ActivationQuantizer]) -> Iterator[None]:
    training = model.training
    model.eval()
    for name, quantizer in quantizers.items():
        quantizer.statistics = ActivationStatistics(quantizer.groups, name)
    try:
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.statistics = None
        model.train(training)


def _pixel_values(batch: Any) -> Tensor:
    pixel_values = batch.get("pixel_values") if isinstance(batch, Mapping) else batch
    if not isinstance(pixel_values, Tensor):
        keys = f" with keys {sorted(batch)}" if isinstance(batch, Mapping) else ""
        raise ValueError(
            f"a calibration batch is a {type(batch).__name__}{keys}: expected a tensor, or a mapping with "
            "'pixel_values'."
        )
    return pixel_values
