"""Quantized layers as the runtimes know them; see `quantizers`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import PackedConv2d, PackedLinear, PackedWeight, QuantConv2d, QuantLinear
from .quantizers import ExportedQuantizer, OnnxQuantizer, dequantize

Layer = PackedLinear | PackedConv2d | QuantLinear | QuantConv2d


class ExportedLinear(nn.Module):
    """A linear layer whose product a runtime computes in integers.

    Scales that differ along the dimension that is summed over (one a head, of the columns of an output projection or
    of its input) make it one integer product a head, and the sum of those in floating point.

    Args:
        layer: a packed layer, or one of which only the input is quantized.
        quantizer: class of the exported quantizers.
        shared_input: whether the input comes quantized already, for several layers.
    """

    def __init__(
        self, layer: PackedLinear | QuantLinear, quantizer: type[ExportedQuantizer], shared_input: bool = False
    ):
        super().__init__()
        self.for_onnx = issubclass(quantizer, OnnxQuantizer)
        self.input_quantizer = None if layer.input_quantizer is None else quantizer(layer.input_quantizer)
        self.integer_input = shared_input or self.input_quantizer is not None
        bias = folded_bias(layer, self.input_quantizer)
        self.register_buffer("bias", bias if self.for_onnx else _kept_bias(bias, layer.weight.shape[0]))
        self.heads = 1
        if not isinstance(layer, PackedWeight):
            self.register_buffer("weight_codes", None)
            self.register_buffer("weight_scale", layer.weight.detach().float().t().contiguous())
            return
        codes = layer.codes().t()  # (in, out)
        by_column = layer.groups.count if layer.groups.dim == 1 else 1
        by_input = self.input_quantizer.groups.count if self.input_quantizer is not None else 1
        self.heads = max(by_column, by_input)
        if self.heads == 1:
            self.register_buffer("weight_codes", codes.contiguous() if self.for_onnx else codes.t().contiguous())
            self.register_buffer("weight_scale", scale_per_output(layer))
            return
        self.register_buffer("weight_codes", codes.unflatten(0, (self.heads, -1)).contiguous())
        self.register_buffer("weight_scale", torch.ones(()))
        by_head = by_column > 1
        output_scale = layer.weight_scale.view(-1, 1, 1) if by_head else scale_per_output(layer).view(1, 1, -1)
        if by_input > 1:
            output_scale = output_scale * self.input_quantizer.group_scale.view(-1, 1, 1)
        self.register_buffer("output_scale", output_scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self.heads > 1:
            y = self._by_head(x)
        else:
            if self.input_quantizer is not None:
                x = self.input_quantizer(x)
            # ONNX Runtime would make a floating-point Gemm of a product of two matrices and the bias.
            flat = self.for_onnx and x.dim() == 2
            y = torch.matmul(x.unsqueeze(1) if flat else x, self._weight())
            y = y.squeeze(1) if flat else y
        return y if self.bias is None else y + self.bias

    def _weight(self) -> Tensor:
        """(in, out), or (heads, in of a head, out)."""
        if self.weight_codes is None:
            return self.weight_scale
        if self.for_onnx and not self.integer_input:
            # After a DequantizeLinear ONNX Runtime would quantize the input too, by itself.
            return self.weight_codes.float() * self.weight_scale
        if self.for_onnx or self.heads > 1:
            return dequantize(self.weight_codes, self.weight_scale, axis=-1)
        return dequantize(self.weight_codes, self.weight_scale, axis=0).t()

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, tokens, in) to (batch, tokens, out)."""
        quantizer = self.input_quantizer
        if quantizer is not None and not quantizer.grouped:
            x = quantizer(x)
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if quantizer is not None and quantizer.grouped:
            x = quantizer.group_codes(x, quantizer.group_scale.view(-1, 1, 1))
        return (torch.matmul(x, self._weight()) * self.output_scale).sum(1)


class ExportedConv2d(nn.Module):
    """The patch embedding.

    OpenVINO has an integer convolution with a floating-point result. ONNX Runtime has not, so there patches that do
    not overlap are cut out of the codes, and the convolution is a matrix product.
    """

    def __init__(self, layer: PackedConv2d | QuantConv2d, quantizer: type[ExportedQuantizer]):
        super().__init__()
        self.for_onnx = issubclass(quantizer, OnnxQuantizer)
        self.input_quantizer = None if layer.input_quantizer is None else quantizer(layer.input_quantizer)
        bias = folded_bias(layer, self.input_quantizer)
        self.register_buffer("bias", bias if self.for_onnx else _kept_bias(bias, layer.weight.shape[0]))
        # Models look up in which type their first layer computes.
        self.register_buffer("weight", torch.empty(0))
        self.shape = tuple(layer.weight.shape)
        packed = isinstance(layer, PackedWeight)
        self.geometry = (
            layer.geometry if packed else {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "groups")}
        )
        self.as_product = self.for_onnx and packed and self.input_quantizer is not None and self._cuts_patches()
        if not packed:
            self.register_buffer("weight_codes", None)
            self.register_buffer("weight_scale", layer.weight.detach().float())
            return
        codes, scale = layer.codes(), scale_per_output(layer)
        if self.as_product:
            codes = codes.flatten(1).t()
        self.register_buffer("weight_codes", codes.contiguous())
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        if self.as_product:
            return self._product(x)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight_scale
        if self.weight_codes is not None:
            weight = dequantize(self.weight_codes, self.weight_scale, axis=0)
        return F.conv2d(x, weight, self.bias, **self.geometry)

    def _product(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows, columns = height // self.shape[2], width // self.shape[3]
        codes = self.input_quantizer.codes(x)
        codes = codes[:, :, : rows * self.shape[2], : columns * self.shape[3]]
        codes = codes.reshape(batch, channels, rows, self.shape[2], columns, self.shape[3])
        codes = codes.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        weight = dequantize(self.weight_codes, self.weight_scale, axis=-1)
        y = torch.matmul(self.input_quantizer.dequantized(codes), weight)
        y = y if self.bias is None else y + self.bias
        return y.transpose(1, 2).reshape(batch, -1, rows, columns)

    def _cuts_patches(self) -> bool:
        one, none, kernel = (1, 1), (0, 0), self.shape[2:]
        geometry = {
            name: value if isinstance(value, tuple) else (value, value) for name, value in self.geometry.items()
        }
        simple = geometry["padding"] == none and geometry["dilation"] == one and geometry["groups"] == one
        return simple and geometry["stride"] == kernel


def scale_per_output(layer: PackedWeight) -> Tensor:
    """Weight scales: one number, (), or one per output, (out,), for groups of outputs."""
    if layer.groups.count == 1:
        return layer.weight_scale.reshape(()).clone()
    return layer.groups.expand(layer.weight_scale, layer.shape).reshape(-1).clone()


def folded_bias(layer: Layer, quantizer: ExportedQuantizer | None) -> Tensor | None:
    """The bias, and in it what the offset of the input adds to every output: W o, in float64 until the end."""
    bias = None if layer.bias is None else layer.bias.detach().float().clone()
    if quantizer is None or not quantizer.offset:
        return bias
    row_sums = layer.weight.detach().double().flatten(1).sum(1)
    folded = row_sums * quantizer.offset
    return (folded if bias is None else folded + bias.double()).float()


def _kept_bias(bias: Tensor | None, outputs: int) -> Tensor:
    """A bias that OpenVINO keeps, because no entry is zero; what is added for that is far below any rounding.

    Without a bias OpenVINO moves the scale of an integer product behind a LayerNorm that follows, as if that were
    invariant to it: its epsilon is not, and then has no effect.
    """
    bias = torch.zeros(outputs) if bias is None else bias
    return torch.where(bias == 0, torch.full_like(bias, 1e-30), bias)
