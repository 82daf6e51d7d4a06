"""The quantizer of an activation in training form."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..numerics.fake_quantize import activation_gradient_factor, fake_quantize
from ..numerics.groups import ScaleGroups
from ..numerics.levels import integer_range
from ..numerics.log_scale import log_from_scale, scale_from_log
from ..numerics.quantization import Quantization
from . import traced
from .activation_statistics import ActivationStatistics
from .fused_layers import Scaled, quantize
from .fusion import is_traced, is_untouched, may_fuse


class UncalibratedError(RuntimeError):
    """An activation quantizer was used before anything told it the size of its activations."""


class ActivationQuantizer(nn.Module):
    """Fake-quantizes activations to b-bit codes, with one learned scale per group and, if asked, a learned offset.

    It has no scale until it is calibrated: by `hf_vaq.calibrate`, or by its first batch in training mode. With several
    processes the calibrated values are averaged over all of them, so that they are equal everywhere.

    Args:
        bits: 2 to 8.
        groups: which activations share a scale.
        signed: range of the codes.
        with_offset: whether the zero level is learned (LSQ+); unsigned codes only.
        scale_gradient: "l1" or "numel", see `activation_gradient_factor`.
    """

    def __init__(
        self,
        bits: int,
        groups: ScaleGroups,
        signed: bool = True,
        with_offset: bool = False,
        scale_gradient: str = "l1",
    ):
        super().__init__()
        self.bits = bits
        self.groups = groups
        self.signed = signed
        self.scale_gradient = scale_gradient
        self.fused = False
        self.log_scale = nn.Parameter(torch.zeros(groups.count, dtype=torch.float32))
        self.offset = nn.Parameter(torch.zeros(groups.count, dtype=torch.float32)) if with_offset else None
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        self.statistics: ActivationStatistics | None = None
        # Reading the buffer at every step would make a GPU wait for it; True never turns False again.
        self._seen_calibrated = False

    def scale(self) -> Tensor:
        """Positive, finite float32 scales, (groups,)."""
        return scale_from_log(self.log_scale)

    def is_calibrated(self) -> bool:
        """Whether the scale means anything yet."""
        if not self._seen_calibrated and not self.calibrated.is_meta:
            self._seen_calibrated = bool(self.calibrated)
        return self._seen_calibrated

    @torch.no_grad()
    def calibrate_from(self, statistics: ActivationStatistics) -> None:
        """Set scale and offset to those of least squared error."""
        fit = statistics.fit(self.bits, signed=self.signed, with_offset=self.offset is not None)
        calibrated = torch.stack([log_from_scale(fit.scale), fit.offset])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(calibrated)
            calibrated /= dist.get_world_size()
        self.log_scale.copy_(calibrated[0])
        if self.offset is not None:
            self.offset.copy_(calibrated[1])
        self.calibrated.fill_(True)
        self._seen_calibrated = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_calibrated()  # a compiled model could not look at the buffer

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized activations, in shape and type of `x`; `x` itself while statistics are gathered.

        Raises:
            UncalibratedError: in evaluation mode before calibration.
        """
        if self.statistics is not None:
            self.statistics.update(x)
            return x
        if not self.is_calibrated():
            self._calibrate_from_first_batch(x)
        if is_traced(x):
            return traced.quantize(x, self.scaled())
        if self.fused and may_fuse(x):
            return quantize(x, self.scaled())
        scale = self.scale()
        factor: Tensor | float = 1.0
        if scale.requires_grad:
            _, qp = integer_range(self.bits, self.signed)
            factor = activation_gradient_factor(x, self.groups.count, qp, self.scale_gradient)
        return fake_quantize(
            x,
            self.groups.expand(scale, x.shape),
            self.bits,
            signed=self.signed,
            offset=None if self.offset is None else self.groups.expand(self.offset, x.shape),
            gradient_factor=factor,
        )

    def is_fusable(self) -> bool:
        """Whether a fused function may do this quantizer's work instead of calling it."""
        return self.fused and self.may_be_replaced()

    def may_be_replaced(self) -> bool:
        """Whether a function that does this quantizer's work may take the place of calling it."""
        return self.statistics is None and is_untouched(self) and self.is_calibrated()

    @torch.no_grad()
    def scaled(self) -> Scaled:
        """What fused functions need to know of this quantizer."""
        quantization = Quantization(self.bits, self.groups, self.signed, self.scale_gradient)
        return Scaled(self.log_scale, self.scale(), self.offset, quantization)

    def _calibrate_from_first_batch(self, x: Tensor) -> None:
        if not self.training:
            raise UncalibratedError(
                "this model's activation quantizers have no scales yet: call hf_vaq.calibrate(model, dataloader) with"
                " training images, or train it, before it is evaluated or packed."
            )
        statistics = ActivationStatistics(self.groups)
        statistics.update(x)
        self.calibrate_from(statistics)

    def extra_repr(self) -> str:
        """Bits, range and groups, for printing."""
        return f"bits={self.bits}, signed={self.signed}, groups={self.groups.count}, offset={self.offset is not None}"
