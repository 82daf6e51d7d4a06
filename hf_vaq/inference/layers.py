"""Engines: what a packed layer computes with instead of its float simulation.

An engine is a submodule of the layer without parameters or saved buffers. It prepares its int8 weights when it is
first used, and anew when what they are computed from changes (`Derived`). An input with NaN, for which there are no
codes, is simulated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer, PackedConv2d, PackedLinear
from .backends import IntegerUnsupportedError, integer_backend
from .codes import byte_codes
from .derived import Derived
from .gemm import IntegerGemm, ScaledWeight


class Engine(Derived):
    """Base of the engines of layers.

    Args:
        backend: name of the backend, or None to choose by device.
        required: whether a device without integer arithmetic is an error; else the layer is simulated there.
    """

    gemm: IntegerGemm | None

    def __init__(self, backend: str | None = None, required: bool = False):
        super().__init__()
        self.wanted_backend = backend
        self.required = required

    def reset(self) -> None:
        """Forget what was prepared."""
        super().reset()
        self.gemm = None

    def is_ready(self, owner: nn.Module) -> bool:
        """Whether there is a prepared product, after preparing it where the device allows."""
        if torch.compiler.is_exporting():
            return False  # prepared weights belong to this process
        self.prepare(owner)
        return self.gemm is not None

    def derive(self, owner: nn.Module) -> None:
        """Prepare the int8 weights, if the device has integer arithmetic."""
        backend, reason = integer_backend(next(owner.buffers()).device, self.wanted_backend)
        if backend is None and self.required:
            raise IntegerUnsupportedError(f"integer execution is not possible: {reason}.")
        self.gemm = None if backend is None else self.build(owner, backend)

    def build(self, owner: nn.Module, backend: str) -> IntegerGemm:
        """The product on the codes of the input."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_modules": {**self._modules, "gemm": None}}


class LayerEngine(Engine):
    """A layer with a quantized input of its own, as one product."""

    def build(self, layer: PackedLinear | PackedConv2d, backend: str) -> IntegerGemm:
        """The product on the codes of the input."""
        return IntegerGemm([ScaledWeight.of(layer)], layer.input_quantizer, backend)


class LinearEngine(LayerEngine):
    """A linear layer."""

    def forward(self, layer: PackedLinear, x: Tensor) -> Tensor:
        """(..., in_features), floating point or byte codes, to (..., out_features)."""
        if not self.is_ready(layer):
            return layer.simulate(x)
        if x.dtype is torch.uint8:
            return self.gemm(x, layer.compute_dtype)
        codes = byte_codes(layer.input_quantizer, x)
        return layer.simulate(x) if codes is None else self.gemm(codes, x.dtype)


class SharedInputEngine(Engine):
    """The quantized input of several projections, and all of them as one product.

    What it returns in place of the hidden states are the outputs of the projections side by side, from which each of
    them then takes its part (`SliceEngine`): numbers, or centered bytes where an attention engine reads them.

    Args:
        projections: the layers, in the order of their outputs.
        attention: the attention module whose engine reads queries, keys and values, in a tuple; empty if there is
            none.
        backend: see `Engine`.
        required: see `Engine`.
    """

    def __init__(
        self,
        projections: tuple[PackedLinear, ...],
        attention: tuple[nn.Module, ...] = (),
        backend: str | None = None,
        required: bool = False,
    ):
        super().__init__(backend, required)
        # In tuples: they are no submodules of this one.
        self.projections = projections
        self.attention = attention

    def sources(self, quantizer: PackedActivationQuantizer) -> tuple[nn.Module, ...]:
        """Quantizer, weights, and the quantizers that read the outputs."""
        return quantizer, *self.projections, *(attention.attention_quantizers for attention in self.attention)

    def build(self, quantizer: PackedActivationQuantizer, backend: str) -> IntegerGemm:
        """The product of all projections on the codes of the input."""
        weights = [ScaledWeight.of(projection) for projection in self.projections]
        output_scale = None
        if self.attention:
            output_scale = scale_of_outputs(self.attention[0], self.projections)
        return IntegerGemm(weights, quantizer, backend, output_scale)

    def forward(self, quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
        """(..., in_features) to (..., sum of out_features)."""
        if not self.is_ready(quantizer):
            return quantizer.simulate(x)
        if x.dtype is torch.uint8:
            return self.gemm(x, self.projections[0].compute_dtype)
        codes = byte_codes(quantizer, x)
        return quantizer.simulate(x) if codes is None else self.gemm(codes, x.dtype)


def scale_of_outputs(attention: nn.Module, projections: tuple[PackedLinear, ...]) -> Tensor:
    """Scales of the quantizers that read queries, keys and values, one an output of the projections; float32."""
    quantizers = [attention.attention_quantizers[name] for name in ("query", "key", "value")]
    return torch.cat(
        [
            reader.scale.float().repeat_interleave(projection.shape[0] // reader.groups.count)
            for reader, projection in zip(quantizers, projections, strict=True)
        ]
    )


class SliceEngine(nn.Module):
    """One of several projections whose product was computed together.

    Args:
        start: first output of this projection.
        stop: one past the last.
        total: outputs of all.
    """

    def __init__(self, start: int, stop: int, total: int):
        super().__init__()
        self.start, self.stop, self.total = start, stop, total

    def forward(self, layer: PackedLinear, x: Tensor) -> Tensor:
        """(..., total) to (..., out_features); an input that is not computed yet is simulated."""
        if x.shape[-1] != self.total:
            return layer.simulate(x)
        return x[..., self.start : self.stop]


class PatchEngine(LayerEngine):
    """A convolution that cuts the image into patches, as a matrix product on the codes of the patches."""

    def reset(self) -> None:
        """Forget what was prepared."""
        super().reset()
        # transformers asks the patch embedding for the type of its weight at each call.
        self.register_buffer("float_weight", None, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_buffers": {"float_weight": None}}

    def build(self, layer: PackedConv2d, backend: str) -> IntegerGemm:
        """The product on the codes of the patches."""
        self.float_weight = layer.float_weight()
        return super().build(layer, backend)

    @property
    def current_weight(self) -> Tensor | None:
        """The float weight, if it is prepared."""
        return self.float_weight if self.is_current() else None

    def forward(self, layer: PackedConv2d, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        codes = None
        if self.is_ready(layer):
            codes = x if x.dtype is torch.uint8 else byte_codes(layer.input_quantizer, x)
        if codes is None:
            return layer.simulate(x)
        channels, (kernel_height, kernel_width) = layer.shape[1], layer.shape[2:]
        rows, columns = x.shape[2] // kernel_height, x.shape[3] // kernel_width
        dtype = layer.compute_dtype if x.dtype is torch.uint8 else x.dtype
        patches = (
            codes[:, :, : rows * kernel_height, : columns * kernel_width]  # a convolution ignores what fills no patch
            .reshape(-1, channels, rows, kernel_height, columns, kernel_width)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(-1, channels * kernel_height * kernel_width)
        )
        y = self.gemm(patches, dtype)
        return y.view(-1, rows, columns, layer.shape[0]).permute(0, 3, 1, 2)


def cuts_patches(layer: PackedConv2d) -> bool:
    """Whether the windows of a convolution tile the image: no overlap, no padding, all channels together."""
    geometry = {"padding": (0, 0), "dilation": (1, 1), "groups": 1} | layer.geometry
    return tuple(geometry.get("stride", ())) == tuple(layer.shape[2:]) and (
        geometry["padding"] in (0, (0, 0), "valid")
        and tuple(geometry["dilation"]) == (1, 1)
        and geometry["groups"] == 1
    )
