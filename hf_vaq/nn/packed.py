"""Packed, integer twins: codes and scales, nothing latent.

On their own they simulate: they compute with exactly the operations of the training form (codes times scale in
float32), so that both give the same logits to the last bit on the same machine. An engine (`hf_vaq.inference`) put
into a module's slot `engine` computes instead of that, from the same codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..numerics.fake_quantize import fake_quantize
from ..numerics.groups import ScaleGroups
from ..numerics.levels import integer_range
from ..numerics.packing import pack_codes, packed_size, unpack_codes
from .activation_quantizer import ActivationQuantizer
from .weight_quantizer import WeightQuantizer


def _apply_but_to(
    names: tuple[str, ...],
    apply: Callable[..., nn.Module],
    module: nn.Module,
    fn: Callable[[Tensor], Tensor],
    recurse: bool,
) -> nn.Module:
    """`nn.Module._apply` that moves the buffers `names`, but leaves their type: scales stay float32 in every model."""
    kept = {name: module._buffers.pop(name) for name in names}
    apply(fn, recurse)
    for name, x in kept.items():
        # Integers are only ever moved.
        module._buffers[name] = None if x is None else fn(x.view(torch.int32)).view(torch.float32)
    return module


class PackedActivationQuantizer(nn.Module):
    """An activation quantizer whose scale and offset are fixed numbers.

    Args:
        bits: 2 to 8.
        groups: which activations share a scale.
        signed: range of the codes.
        with_offset: whether there is a zero level.
    """

    engine: nn.Module | None

    def __init__(self, bits: int, groups: ScaleGroups, signed: bool = True, with_offset: bool = False):
        super().__init__()
        self.bits = bits
        self.groups = groups
        self.signed = signed
        self.register_module("engine", None)
        self.register_buffer("scale", torch.ones(groups.count, dtype=torch.float32))
        self.register_buffer("offset", torch.zeros(groups.count, dtype=torch.float32) if with_offset else None)

    @classmethod
    @torch.no_grad()
    def from_training(cls, quantizer: ActivationQuantizer) -> PackedActivationQuantizer:
        """The packed twin of a calibrated quantizer."""
        packed = cls(quantizer.bits, quantizer.groups, quantizer.signed, quantizer.offset is not None)
        packed.scale = quantizer.scale().clone()
        packed.offset = None if quantizer.offset is None else quantizer.offset.detach().clone()
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized activations, in shape and type of `x`; with an engine, what it makes of them."""
        return self.simulate(x) if self.engine is None else self.engine(self, x)

    def simulate(self, x: Tensor) -> Tensor:
        """Fake-quantized activations, in shape and type of `x`."""
        offset = None if self.offset is None else self.groups.expand(self.offset, x.shape)
        scale = self.groups.expand(self.scale, x.shape)
        return fake_quantize(x, scale, self.bits, signed=self.signed, offset=offset)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedActivationQuantizer:
        return _apply_but_to(("scale", "offset"), super()._apply, self, fn, recurse)

    def extra_repr(self) -> str:
        """Bits, range and groups, for printing."""
        return f"bits={self.bits}, signed={self.signed}, groups={self.groups.count}, offset={self.offset is not None}"


class PackedWeight(nn.Module):
    """What packed layers share: dense codes and their scales, and the float weight computed from them when asked for.

    Args:
        shape: shape of the weight.
        bits: 2 to 8.
        groups: which weights share a scale.
        bias: whether there is a bias, one number per output.
        dtype: floating-point type of the computation and of the bias.
    """

    input_quantizer: PackedActivationQuantizer | None
    engine: nn.Module | None

    def __init__(
        self, shape: tuple[int, ...], bits: int, groups: ScaleGroups, bias: bool, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.shape = torch.Size(shape)
        self.bits = bits
        self.groups = groups
        self.dtype = dtype or torch.get_default_dtype()
        self.register_module("input_quantizer", None)
        self.register_module("engine", None)
        self.register_buffer("weight_codes", torch.zeros(packed_size(self.shape.numel(), bits), dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(groups.count, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(shape[0], dtype=self.dtype), requires_grad=False) if bias else None

    @torch.no_grad()
    def load(self, weight: Tensor, quantizer: WeightQuantizer, bias: Tensor | None) -> None:
        """Take codes and scales of a latent weight."""
        qn, _ = integer_range(self.bits)
        self.weight_codes = pack_codes(quantizer.codes(weight).short() - qn, self.bits)
        self.weight_scale = quantizer.scale(weight).detach().clone()
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def codes(self) -> Tensor:
        """int8 codes, in the shape of the weight."""
        qn, _ = integer_range(self.bits)
        return (
            (unpack_codes(self.weight_codes, self.bits, self.shape.numel()).short() + qn)
            .to(torch.int8)
            .view(self.shape)
        )

    @property
    def weight(self) -> Tensor:
        """The quantized weight in floating point, computed anew at each call unless the engine keeps it."""
        kept = getattr(self.engine, "current_weight", None)
        return self.float_weight() if kept is None else kept

    def float_weight(self) -> Tensor:
        """The quantized weight in floating point, computed anew."""
        scale = self.groups.expand(self.weight_scale, self.shape)
        return (self.codes().float() * scale).to(self.dtype)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Floating-point type of the result where the input, being codes, has none."""
        return self.dtype if self.bias is None else self.bias.dtype

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer, by its engine if it has one."""
        return self.simulate(x) if self.engine is None else self.engine(self, x)

    def simulate(self, x: Tensor) -> Tensor:
        """The layer's answer in floating point."""
        raise NotImplementedError

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input after its quantizer, if this layer has one of its own."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return _apply_but_to(("weight_scale",), super()._apply, self, fn, recurse)

    def extra_repr(self) -> str:
        """Shape, bits and groups, for printing."""
        return f"shape={tuple(self.shape)}, bits={self.bits}, groups={self.groups.count}, bias={self.bias is not None}"


class PackedLinear(PackedWeight):
    """A linear layer with packed weight."""

    def simulate(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(self.quantized_input(x), self.weight.to(x.dtype), self.bias)


class PackedConv2d(PackedWeight):
    """A convolution with packed weight.

    Args:
        shape: (out_channels, in_channels, kernel height, kernel width).
        bits: 2 to 8.
        groups: which weights share a scale.
        bias: whether there is a bias.
        dtype: floating-point type of the computation and of the bias.
        geometry: stride, padding, dilation and groups, as `torch.nn.functional.conv2d` takes them.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bits: int,
        groups: ScaleGroups,
        bias: bool,
        dtype: torch.dtype | None = None,
        geometry: dict | None = None,
    ):
        super().__init__(shape, bits, groups, bias, dtype)
        self.geometry = geometry or {}

    def simulate(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        return F.conv2d(self.quantized_input(x), self.weight.to(x.dtype), self.bias, **self.geometry)


def packed_like(layer: nn.Linear | nn.Conv2d, bits: int, groups: ScaleGroups) -> PackedLinear | PackedConv2d:
    """An empty packed layer of the shape and type of `layer`."""
    arguments = (tuple(layer.weight.shape), bits, groups, layer.bias is not None, layer.weight.dtype)
    if isinstance(layer, nn.Linear):
        return PackedLinear(*arguments)
    return PackedConv2d(*arguments, geometry=convolution_geometry(layer))


def convolution_geometry(layer: nn.Conv2d) -> dict:
    """What a convolution needs to know beside its weight, as arguments of `torch.nn.functional.conv2d`."""
    return {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
