"""What a fake quantizer is besides its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .groups import ScaleGroups
from .levels import integer_range

FACTORS = ("none", "numel", "l1")


@dataclass(frozen=True)
class Quantization:
    """All that a fake quantizer is besides its tensors.

    Attributes:
        bits: 2 to 8.
        groups: which elements share a scale.
        signed: range of the codes.
        factor: what multiplies the gradient of scale and offset: "numel" is 1 / sqrt(numel Qp); "l1" follows the
            magnitude, see `weight_gradient_factor` and `activation_gradient_factor`; "none" computes no such gradient.
        weight: whether "l1" means that of a weight or that of an activation.
    """

    bits: int
    groups: ScaleGroups
    signed: bool = True
    factor: str = "none"
    weight: bool = False

    def numbers(self) -> list[int]:
        """All of it, as an operator of PyTorch can be told of it."""
        groups = self.groups
        return [self.bits, groups.count, groups.dim, self.signed, FACTORS.index(self.factor), self.weight]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Quantization:
        """What `numbers` was called of."""
        bits, count, dim, signed, factor, weight = numbers
        return cls(bits, ScaleGroups(count, dim), bool(signed), FACTORS[factor], bool(weight))


def factor_rule(quantization: Quantization) -> str:
    """How `gradient_factor` finds the factor on gradients of scale and offset."""
    if quantization.factor != "l1":
        return quantization.factor
    if quantization.weight:
        return "l1 of the group"
    return "numel" if quantization.groups.count == 1 else "mean l1 of the groups"


def constant_values(quantization: Quantization, numel: int, scaling: float = 1.0) -> tuple[float, ...]:
    """Limits, the gradient factor as far as it is a constant, number of groups, and `scaling`."""
    qn, qp = integer_range(quantization.bits, quantization.signed)
    count = quantization.groups.count
    factor = (numel / count * qp) ** -0.5
    if quantization.factor == "l1" and not quantization.weight and count == 1:
        factor = 1 / (numel**0.5 * qp)
    return float(qn), float(qp), factor, float(count), scaling
