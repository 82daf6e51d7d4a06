"""The quantizer of a weight in training form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..numerics.fake_quantize import fake_quantize, quantize_to_codes, weight_gradient_factor
from ..numerics.groups import ScaleGroups
from ..numerics.levels import integer_range
from ..numerics.log_scale import log_from_scale, scale_from_log
from ..numerics.quantization import Quantization
from ..numerics.scale_init import least_squares_scale, statistics_scale
from . import traced
from .fused_layers import Scaled, quantize
from .fusion import is_traced, may_fuse


class WeightQuantizer(nn.Module):
    """Fake-quantizes a latent weight to signed b-bit codes, with one scale per group.

    Args:
        bits: 2 to 8.
        groups: which weights share a scale.
        learned: whether the scale is a parameter (LSQ) or a statistic of the weight (StatsQ).
        scale_gradient: "l1" or "numel", see `weight_gradient_factor`.
    """

    def __init__(self, bits: int, groups: ScaleGroups, learned: bool = True, scale_gradient: str = "l1"):
        super().__init__()
        self.bits = bits
        self.groups = groups
        self.scale_gradient = scale_gradient
        self.fused = False
        # float32 whatever the model's type: a bfloat16 scale moves in steps of 0.4 %.
        self.log_scale = nn.Parameter(torch.zeros(groups.count, dtype=torch.float32)) if learned else None

    def grouped(self, weight: Tensor) -> Tensor:
        """The weight as (groups, weights of a group)."""
        return self.groups.collect(weight)

    def scale(self, weight: Tensor) -> Tensor:
        """Positive, finite float32 scales, (groups,)."""
        if self.log_scale is None:
            return statistics_scale(self.grouped(weight), self.bits)
        return scale_from_log(self.log_scale)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set the scales to those that minimise the squared quantization error of `weight`."""
        if self.log_scale is not None:
            self.log_scale.copy_(log_from_scale(least_squares_scale(self.grouped(weight), self.bits)))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """int8 codes, in the shape of the weight."""
        scale = self.groups.expand(self.scale(weight), weight.shape)
        return quantize_to_codes(weight, scale, self.bits).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantized weight, in shape and type of `weight`."""
        if is_traced(weight):
            return traced.quantize(weight, self.scaled(weight), written=True)
        if self.fused and may_fuse(weight):
            return quantize(weight, self.scaled(weight))
        scale = self.scale(weight)
        factor: Tensor | float = 1.0
        if scale.requires_grad:
            factor = self._gradient_factor(weight.detach())
        return fake_quantize(weight, self.groups.expand(scale, weight.shape), self.bits, gradient_factor=factor)

    @torch.no_grad()
    def scaled(self, weight: Tensor) -> Scaled:
        """What fused functions need to know of this quantizer."""
        factor = "none" if self.log_scale is None else self.scale_gradient
        quantization = Quantization(self.bits, self.groups, factor=factor, weight=True)
        return Scaled(self.log_scale, self.scale(weight.detach()), None, quantization)

    def _gradient_factor(self, weight: Tensor) -> Tensor | float:
        groups = self.grouped(weight)
        l1_norm = groups.abs().sum(1, dtype=torch.float32)
        _, qp = integer_range(self.bits)
        factor = weight_gradient_factor(l1_norm, groups.shape[1], qp, self.scale_gradient)
        return self.groups.expand(factor, weight.shape) if isinstance(factor, Tensor) else factor

    def extra_repr(self) -> str:
        """Bits and groups, for printing."""
        return f"bits={self.bits}, groups={self.groups.count}, learned={self.log_scale is not None}"
