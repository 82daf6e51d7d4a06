"""The quantizer of an activation in training form, and the statistics that calibrate it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..numerics.fake_quantize import activation_gradient_factor, fake_quantize
from ..numerics.groups import ScaleGroups
from ..numerics.levels import integer_range
from ..numerics.scale_init import affine_least_squares, least_squares_scale, magnitude_scale
from .scale import log_from_scale, scale_from_log


class UncalibratedError(RuntimeError):
    """An activation quantizer was used before anything told it the size of its activations."""


class ActivationStatistics:
    """What calibration keeps of the activations it sees: sums over all of them, and a sample.

    Args:
        groups: which activations share a scale.
        sample_size: values kept per group and batch, evenly spaced, so that no randomness is involved.
    """

    def __init__(self, groups: ScaleGroups, sample_size: int = 1 << 14):
        self.groups = groups
        self.sample_size = sample_size
        self.samples: list[Tensor] = []
        self.batches = 0

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch of activations."""
        values = self.groups.collect(x)
        # A stride that shares no factor with the feature dimension visits all features.
        stride = max(1, values.shape[1] // self.sample_size) | 1
        self.samples.append(values[:, ::stride][:, : self.sample_size].float())
        self.batches += 1

    def values(self) -> Tensor:
        """The sample, (groups, values)."""
        return torch.cat(self.samples, 1)


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
        if not self._seen_calibrated:
            self._seen_calibrated = bool(self.calibrated)
        return self._seen_calibrated

    @torch.no_grad()
    def calibrate_from(self, statistics: ActivationStatistics) -> None:
        """Set scale and offset from statistics: LSQ's 2 mean|x| / sqrt(Qp), refined to least squared error.

        Raises:
            ValueError: if the activations hold NaN or infinite values.
        """
        values = statistics.values()
        if not torch.isfinite(values).all():
            raise ValueError("the activations of the calibration images hold NaN or infinite values.")
        _, qp = integer_range(self.bits, self.signed)
        offset = torch.zeros(self.groups.count, device=values.device)
        if self.offset is None:
            start = magnitude_scale(values.abs().mean(1), qp)
            scale = least_squares_scale(values, self.bits, signed=self.signed, start=start)
        else:
            offset = values.amin(1)
            start = magnitude_scale((values - offset[:, None]).mean(1), qp)
            scale, offset = affine_least_squares(values, self.bits, start, offset)
        calibrated = torch.stack([log_from_scale(scale), offset])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(calibrated)
            calibrated /= dist.get_world_size()
        self.log_scale.copy_(calibrated[0])
        if self.offset is not None:
            self.offset.copy_(calibrated[1])
        self.calibrated.fill_(True)

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
