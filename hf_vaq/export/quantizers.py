"""Activation quantizers as the runtimes know them: in the form that makes each compute the products in integers.

The modules here only exist while a model is being exported. In place of the arithmetic they put the runtime's own
operators into the graph; run eagerly, those give zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..numerics.levels import integer_range

ONNX_OPSET = 21
"""Of the quantization operators; the file may state a later one, in which they are the same."""


class ExportedQuantizer(nn.Module):
    """A packed activation quantizer as operators of a runtime.

    `forward` gives round(clamp((x - o) / s, Qn, Qp)) s, that is, *without* the offset o added back: what reads it
    folds W o into its bias, so that the integer product needs no correction.

    One scale per attention head cannot be an operand of an integer product, whose scale must not depend on what is
    summed over. Such a quantizer divides by its scales first and then has the scale 1; see `normalized`.

    Args:
        quantizer: what to export.
        right_operand: whether the result is the right side of a matrix product. Runtimes then want signed integers.
    """

    def __init__(self, quantizer: PackedActivationQuantizer, right_operand: bool = False):
        super().__init__()
        self.low, self.high = integer_range(quantizer.bits, quantizer.signed)
        self.right_operand = right_operand
        self.groups = quantizer.groups
        self.scale = 1.0 if self.grouped else float(quantizer.scale)
        self.offset = 0.0 if quantizer.offset is None or self.grouped else float(quantizer.offset)
        if self.grouped:
            if quantizer.offset is not None:
                raise ValueError("an activation quantizer with an offset a head cannot be exported.")
            self.register_buffer("group_scale", quantizer.scale.float().clone())

    @property
    def grouped(self) -> bool:
        """Whether there are several scales."""
        return self.groups.count > 1

    def normalized(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantize `x`.

        Returns:
            The quantized values, and None; or, of a quantizer with several scales, the integer codes as floats, and
            the scales that they are to be multiplied with, broadcastable against `x`.
        """
        if not self.grouped:
            return self.quantized(x), None
        scale = self.groups.expand(self.group_scale, x.shape)
        return self.group_codes(x, scale), scale

    def forward(self, x: Tensor) -> Tensor:
        """Quantized values without the offset, in the shape of `x`."""
        values, scale = self.normalized(x)
        return values if scale is None else values * scale

    def quantized(self, x: Tensor) -> Tensor:
        """The operators of the runtime, for one scale."""
        return self.dequantized(self.codes(x))

    def codes(self, x: Tensor) -> Tensor:
        """What `x` is quantized to, in the form that is moved about in bytes; for one scale."""
        raise NotImplementedError

    def dequantized(self, codes: Tensor) -> Tensor:
        """What `quantized` gives, of its codes in another order or shape."""
        raise NotImplementedError

    def group_codes(self, x: Tensor, scale: Tensor) -> Tensor:
        """The operators of the runtime, for several scales, broadcastable against `x`; codes as floats."""
        raise NotImplementedError


class OnnxQuantizer(ExportedQuantizer):
    """QuantizeLinear, Clip where the codes have fewer than 8 bits, DequantizeLinear.

    Left operands are uint8 with a zero point, right ones int8 without: the pair that ONNX Runtime multiplies fastest.
    QuantizeLinear rounds ties to even, as the packed model does, but saturates only at the ends of its 8-bit type.
    """

    def __init__(self, quantizer: PackedActivationQuantizer, right_operand: bool = False):
        super().__init__(quantizer, right_operand)
        signed_storage = right_operand and self.low < 0
        self.dtype = torch.int8 if signed_storage else torch.uint8
        zero_point = 0 if signed_storage else -self.low
        self.register_buffer("scale_value", torch.tensor(self.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=self.dtype))
        self.register_buffer("lowest", torch.tensor(self.low + zero_point, dtype=self.dtype))
        self.register_buffer("highest", torch.tensor(self.high + zero_point, dtype=self.dtype))

    def codes(self, x: Tensor) -> Tensor:
        """8-bit integers, with the zero point added."""
        if self.offset:
            x = x - self.offset
        codes = _onnx("QuantizeLinear", (x, self.scale_value, self.zero_point), self.dtype, x.shape)
        if self.high - self.low < 255:
            codes = _onnx("Clip", (codes, self.lowest, self.highest), self.dtype, x.shape)
        return codes

    def dequantized(self, codes: Tensor) -> Tensor:
        """Values of 8-bit integers."""
        return _onnx("DequantizeLinear", (codes, self.scale_value, self.zero_point), torch.float32, codes.shape)

    def group_codes(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes of what was divided before."""
        return self.quantized(x / scale)


class OpenVinoQuantizer(ExportedQuantizer):
    """Clamp where the codes have fewer than 8 bits, and a FakeQuantize of 256 levels on the same grid.

    OpenVINO's low-precision transformations know 256 levels. With the 4 or 16 of the narrow quantizer the products
    are integer as well, but the quantization is not fused into what comes before.
    """

    def __init__(self, quantizer: PackedActivationQuantizer, right_operand: bool = False):
        super().__init__(quantizer, right_operand)
        lowest = -128 if self.low < 0 else 0
        self.limits = (lowest, lowest + 255)

    def codes(self, x: Tensor) -> Tensor:
        """Quantized values: in OpenVINO they are integers until they are multiplied."""
        if self.high - self.low < 255:
            x = x.clamp(self.low * self.scale + self.offset, self.high * self.scale + self.offset)
        # The output range is that of the codes times the scale: the offset is not added back.
        outputs = [x.new_tensor(limit * self.scale) for limit in self.limits]
        inputs = [x.new_tensor(limit * self.scale + self.offset) for limit in self.limits]
        return self._fake_quantize(x, inputs, outputs)

    def dequantized(self, codes: Tensor) -> Tensor:
        """The same values."""
        return codes

    def group_codes(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes: input ranges that differ from group to group, one output range."""
        if self.high - self.low < 255:
            x = torch.minimum(torch.maximum(x, self.low * scale), self.high * scale)
        outputs = [x.new_tensor(float(limit)) for limit in self.limits]
        return self._fake_quantize(x, [limit * scale for limit in self.limits], outputs)

    def _fake_quantize(self, x: Tensor, inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
        # A domain that OpenVINO's reader of ONNX files knows beside the standard one.
        return torch.onnx.ops.symbolic(
            "org.openvinotoolkit::FakeQuantize",
            (x, *inputs, *outputs),
            attrs={"levels": 256},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )


def dequantize(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """DequantizeLinear of constant int8 codes, with one scale, (), or one for each index along `axis`, (size,).

    Written as arithmetic it would be folded into a floating-point constant.
    """
    attributes = {"axis": axis % codes.dim()} if scale.dim() else {}
    return _onnx("DequantizeLinear", (codes, scale), torch.float32, codes.shape, attributes)


def _onnx(name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: torch.Size, attributes=None) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"::{name}", inputs, attrs=attributes or {}, dtype=dtype, shape=shape, version=ONNX_OPSET
    )
