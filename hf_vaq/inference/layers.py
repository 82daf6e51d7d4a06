"""Engines: what a packed layer computes with instead of its float simulation.

An engine is a submodule of the layer without parameters or saved buffers. It prepares its int8 weights when it is
first used and forgets them when the model is copied, pickled or moved, to prepare them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer, PackedConv2d, PackedLinear
from .backends import IntegerUnsupportedError, integer_backend
from .codes import byte_codes
from .gemm import IntegerGemm, ScaledWeight


class Engine(nn.Module):
    """Base of all engines.

    Args:
        backend: name of the backend, or None to choose by device.
        required: whether a device without integer arithmetic is an error; else the layer is simulated there.
    """

    gemm: IntegerGemm | None

    def __init__(self, backend: str | None = None, required: bool = False):
        super().__init__()
        self.wanted_backend = backend
        self.required = required
        self.reset()

    def reset(self) -> None:
        """Forget what was prepared."""
        self.gemm = None
        self.ready = False

    def is_ready(self, device: torch.device, build: Callable[[str], IntegerGemm]) -> bool:
        """Whether there is a prepared product, after preparing it where the device allows."""
        if not self.ready:
            self._prepare(device, build)
        return self.gemm is not None

    @torch.compiler.disable(reason="int8 weights are prepared once: use hf_vaq.inference.compile_model")
    @torch.no_grad()
    def _prepare(self, device: torch.device, build: Callable[[str], IntegerGemm]) -> None:
        backend, reason = integer_backend(device, self.wanted_backend)
        if backend is None and self.required:
            raise IntegerUnsupportedError(f"integer execution is not possible: {reason}.")
        # Tensors made in inference mode could not be used outside of it.
        with torch.inference_mode(False):
            self.gemm = None if backend is None else build(backend)
        self.ready = True

    def _apply(self, fn: Callable, recurse: bool = True) -> Engine:
        self.reset()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # For copies and pickles: prepared weights have a layout of this very CPU.
        state = {**self.__dict__, "_modules": {**self._modules, "gemm": None}, "ready": False}
        return state


class LayerEngine(Engine):
    """A layer with a quantized input of its own, as one product."""

    def prepare(self, layer: PackedLinear | PackedConv2d) -> bool:
        """Prepare the int8 weight; whether there is one."""
        return self.is_ready(layer.weight_codes.device, lambda backend: self.build(layer, backend))

    def build(self, layer: PackedLinear | PackedConv2d, backend: str) -> IntegerGemm:
        """The product on the codes of the input."""
        return IntegerGemm([ScaledWeight.of(layer)], layer.input_quantizer, backend)


class LinearEngine(LayerEngine):
    """A linear layer."""

    def forward(self, layer: PackedLinear, x: Tensor) -> Tensor:
        """(..., in_features), floating point or byte codes, to (..., out_features)."""
        if not self.prepare(layer):
            return layer.simulate(x)
        if x.dtype is torch.uint8:
            return self.gemm(x, layer.compute_dtype)
        return self.gemm(byte_codes(layer.input_quantizer, x), x.dtype)


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

    def prepare(self, quantizer: PackedActivationQuantizer) -> bool:
        """Prepare the int8 weights; whether there are any."""
        return self.is_ready(quantizer.scale.device, lambda backend: self._build(quantizer, backend))

    def _build(self, quantizer: PackedActivationQuantizer, backend: str) -> IntegerGemm:
        weights = [ScaledWeight.of(projection) for projection in self.projections]
        output_scale = None
        if self.attention:
            output_scale = scale_of_outputs(self.attention[0], self.projections)
        return IntegerGemm(weights, quantizer, backend, output_scale)

    def forward(self, quantizer: PackedActivationQuantizer, x: Tensor) -> Tensor:
        """(..., in_features) to (..., sum of out_features)."""
        if not self.prepare(quantizer):
            return quantizer.simulate(x)
        if x.dtype is torch.uint8:
            return self.gemm(x, self.projections[0].compute_dtype)
        return self.gemm(byte_codes(quantizer, x), x.dtype)


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
        self.float_weight = layer.weight
        return super().build(layer, backend)

    def forward(self, layer: PackedConv2d, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        if not self.prepare(layer):
            return layer.simulate(x)
        channels, (kernel_height, kernel_width) = layer.shape[1], layer.shape[2:]
        rows, columns = x.shape[2] // kernel_height, x.shape[3] // kernel_width
        x = x[:, :, : rows * kernel_height, : columns * kernel_width]  # a convolution ignores what fills no patch
        coded = x.dtype is torch.uint8
        dtype = layer.compute_dtype if coded else x.dtype
        patches = (
            (x if coded else byte_codes(layer.input_quantizer, x))
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
