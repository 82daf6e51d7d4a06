"""The compiled kernels for all weights of a model as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..groups import ScaleGroups
from ..oscillation import Oscillations
from .loading import kernels


class LatentWeight(NamedTuple):
    """A weight and its quantizer.

    Attributes:
        values: any shape.
        groups: which of them share a scale.
        scale: positive, float32, (groups,).
        bits: 2 to 8; codes are signed.
    """

    values: Tensor
    groups: ScaleGroups
    scale: Tensor
    bits: int


def bin_regularizer(
    weights: Sequence[LatentWeight], gradients: Sequence[Tensor | None] | None = None, factor: float = 1.0
) -> Tensor:
    """`bins.bin_regularizer` of all weights; its gradient, times `factor`, is added to `gradients`.

    Args:
        weights: those that `can_run` takes.
        gradients: for every weight a tensor in its shape, contiguous and float32, or None.
        factor: any number.

    Returns:
        The regularizer without `factor`, a float32 scalar.
    """
    table, scales = _table(weights, gradients or [None] * len(weights))
    value = kernels().weights.vaq_bin_regularizer(table.data_ptr(), len(weights), factor, torch.get_num_threads())
    del scales  # the table points to them
    return torch.tensor(value, dtype=torch.float32)


def count_oscillations(weights: Sequence[LatentWeight], oscillations: Oscillations) -> None:
    """`Oscillations.update` with the present codes of the weights.

    Args:
        weights: those that `can_run` takes.
        oscillations: of all weights, one after the other.
    """
    sizes = [weight.values.numel() for weight in weights]
    table, scales = _table(weights, codes=oscillations.codes.split(sizes), histories=oscillations.history.split(sizes))
    half = oscillations.history.dtype == torch.float16
    step = oscillations.begin_step()
    kernels().weights.vaq_count_oscillations(table.data_ptr(), len(weights), *step, half, torch.get_num_threads())
    del scales


def _table(
    weights: Sequence[LatentWeight],
    gradients: Sequence[Tensor | None] = (),
    codes: Sequence[Tensor] = (),
    histories: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """The rows that weights.cpp calls `Weight`, and the scales of all weights."""
    none = [None] * len(weights)
    scales = torch.cat([weight.scale for weight in weights])
    rows, scale = [], scales.data_ptr()
    for weight, *others in zip(weights, gradients or none, codes or none, histories or none, strict=True):
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in (weight.values, *others)]
        rows.append([*pointers, scale, *weight.groups.layout(weight.values.shape), weight.bits])
        scale += 4 * weight.groups.count
    return torch.tensor(rows, dtype=torch.int64), scales
