"""The compiled kernels as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..compiled import compilation_failure, is_plain
from ..groups import ScaleGroups
from ..levels import integer_range
from ..log_scale import LOG_BOUND
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


def can_run(weights: Sequence[Tensor]) -> bool:
    """Whether the kernels exist, and take these weights: contiguous, float32, on the CPU."""
    # Whoever wants nothing compiled, or cannot compile, gets nothing compiled.
    if torch.compiler.is_compiling() or compilation_failure() is not None:
        return False
    return all(_is_taken(weight) for weight in weights) and kernels() is not None


def _is_taken(tensor: Tensor) -> bool:
    on_cpu = is_plain(tensor) and tensor.device.type == "cpu"
    return on_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()


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
    value = kernels().vaq_bin_regularizer(table.data_ptr(), len(weights), factor, torch.get_num_threads())
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
    kernels().vaq_count_oscillations(table.data_ptr(), len(weights), *step, half, torch.get_num_threads())
    del scales


def weight_gradients(grad: Tensor, weight: LatentWeight, factor: float | None) -> Tensor:
    """The gradients of `fused.fused_gradients` for a weight; `grad` itself becomes the gradient of the weight.

    Args:
        grad: gradient of the quantized weight, a tensor that `can_run` takes.
        weight: likewise.
        factor: on the gradient of the scale; None for 1 / sqrt(l1 Qp), with l1 the sum of magnitudes in the group.

    Returns:
        The gradient by the logarithmic scale parameter, float32, (groups,).
    """
    table, scales = _table([weight], [grad])
    sums = torch.zeros(2, weight.groups.count, dtype=torch.float64)
    by_scale, magnitudes = sums
    threads = torch.get_num_threads()
    kernels().vaq_pass_quantizer(table.data_ptr(), by_scale.data_ptr(), magnitudes.data_ptr(), threads)
    _, highest = integer_range(weight.bits)
    factors = (magnitudes * highest).clamp_min(torch.finfo(torch.float32).tiny).rsqrt() if factor is None else factor
    position = scales.log() / LOG_BOUND  # = tanh(l / B)
    return (by_scale * factors * scales * (1 - position * position)).float()


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
