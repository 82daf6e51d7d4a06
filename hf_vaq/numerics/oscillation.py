"""Oscillation of weight codes: how often the integer code of a weight flips back.

Source: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training" (ICML 2022), section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .compiled import CompiledKernel


class OscillationState(NamedTuple):
    """What is remembered of every weight between steps; the three tensors have the shape of the codes."""

    codes: Tensor
    """Codes after the last step, int8."""
    direction: Tensor
    """Sign of the last change of the code, int8: -1, 1, or 0 as long as it has not changed."""
    frequency: Tensor
    """Exponential moving average of the oscillations per step, float32, from 0 to 1."""


def start_oscillation(codes: Tensor) -> OscillationState:
    """The state before the first step: nothing has moved.

    Args:
        codes: int8 codes of any shape.
    """
    return OscillationState(codes, torch.zeros_like(codes), torch.zeros_like(codes, dtype=torch.float32))


def update_oscillation(
    state: OscillationState, codes: Tensor, momentum: float = 0.001, fused: bool = False
) -> OscillationState:
    """Account for one training step: f <- m o + (1 - m) f.

    o is 1 where the code changed in this step and in the direction opposite to its last change, else 0. A code that
    jumps over several levels counts as one change.

    Args:
        state: the state after the step before; it is not modified.
        codes: int8 codes after this step, in the shape of the state.
        momentum: m, from 0 to 1.
        fused: whether to compute it in one pass over memory, by a compiled kernel.
    """
    m = torch.full((), momentum, dtype=torch.float32, device=codes.device)
    update = _update if fused else _plain_update
    return OscillationState(codes, *update((codes, *state, m)))


def _update_function(codes, before, direction, frequency, momentum):
    # Comparisons, not a difference: 127 - (-128) does not fit in int8.
    change = (codes > before).to(torch.int8) - (codes < before).to(torch.int8)
    oscillated = (change * direction < 0).to(torch.float32)
    return torch.where(change != 0, change, direction), torch.lerp(frequency, oscillated, momentum)


def _plain_update(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return _update_function(*tensors)


_update = CompiledKernel(_update_function)


def oscillation_percentage(frequency: Tensor, threshold: float = 0.005) -> Tensor:
    """Percentage (0 to 100) of the weights whose oscillation frequency is above `threshold`; a scalar."""
    return (frequency > threshold).to(torch.float32).mean() * 100
