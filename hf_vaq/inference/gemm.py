"""Byte codes times int8 weights: one prepared matrix multiplication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

from ..nn import PackedActivationQuantizer, PackedWeight
from .codes import CENTER, zero_point

INT_MM_ROWS = 17  # what cuBLASLt wants at least of the first operand
INT_MM_MULTIPLE = 8  # of every size
ONEDNN_OUTPUTS = (torch.float32, torch.bfloat16, torch.uint8)

frozen = False
"""True while `compile_model` traces, and the compiler takes weights for constants."""


@torch.compiler.assume_constant_result
def _weights_are_constants() -> bool:
    # Asked once, when a model is traced, and not at each call.
    return frozen and inductor.freezing


def _qlinear(
    codes: Tensor, zero_point: int, weight: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    center = CENTER if dtype is torch.uint8 else 0
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, zero_point, weight, scale, zeros, bias, 1.0, center, dtype, "none", [], ""
    )


# Inductor takes oneDNN's operator apart and then wants its weight to be a constant, which it is only with `freezing`.
# Under a name of our own the operator stays whole, so that torch.compile(model) works as well.
_LIBRARY = torch.library.Library("hf_vaq", "FRAGMENT")
_LIBRARY.define(
    "qlinear(Tensor codes, int zero_point, Tensor weight, Tensor scale, Tensor zeros, Tensor bias, ScalarType dtype)"
    " -> Tensor"
)
_LIBRARY.impl("qlinear", _qlinear, "CPU")
# Prepacked weights are opaque tensors of a layout, and a dispatch key, of their own.
_LIBRARY.impl("qlinear", _qlinear, "MkldnnCPU")


@torch.library.register_fake("hf_vaq::qlinear", lib=_LIBRARY)
def _(codes, zero_point, weight, scale, zeros, bias, dtype):
    return codes.new_empty((*codes.shape[:-1], scale.shape[0]), dtype=dtype)


@dataclass(frozen=True)
class ScaledWeight:
    """A weight and its scales, as matrices.

    Attributes:
        codes: int8, (outputs, inputs).
        row_scale: float32, (outputs, column groups): scale of the weights of one output and one group of columns.
        bias: float32, (outputs,).
    """

    codes: Tensor
    row_scale: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: PackedWeight) -> ScaledWeight:
        """The weight of a packed layer; a convolution's becomes (out_channels, the rest)."""
        codes = layer.codes().flatten(1)
        groups = layer.groups
        if groups.count > 1 and groups.dim == 1:
            scale = layer.weight_scale.float()[None, :].expand(codes.shape[0], -1)
        else:
            scale = groups.expand(layer.weight_scale.float(), layer.shape).flatten()
            scale = scale.expand(codes.shape[0])[:, None]
        bias = codes.new_zeros(codes.shape[0], dtype=torch.float32) if layer.bias is None else layer.bias.float()
        return cls(codes, scale, bias)


@dataclass(frozen=True)
class FoldedProduct:
    """Several scaled weights that read the same byte codes, as one matrix with everything else folded in.

    y = sum over column groups g of  scale_g (codes_g (x_g - zero_point)) + bias.

    Attributes:
        codes: int8, (outputs, inputs).
        scale: float32, (outputs, column groups).
        bias: float32, (outputs,); the offset of the activation quantizer is in it.
        zero_point: the byte that stands for code zero.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor
    zero_point: int

    @classmethod
    def of(
        cls, weights: Sequence[ScaledWeight], quantizer: PackedActivationQuantizer, output_scale: Tensor | None = None
    ) -> FoldedProduct:
        """Fold.

        Where columns have scales of their own (a scale per attention head in the input of the output projection),
        there is one product a group, each exact. Several layers that read the same input become one by concatenation,
        since every output has a scale of its own.

        Args:
            weights: the weights to concatenate.
            quantizer: of the input; its groups may divide the columns.
            output_scale: float32, (outputs,): the result is divided by it, to become codes of quantizers of these
                scales.
        """
        codes = torch.cat([weight.codes for weight in weights])
        groups = max(quantizer.groups.count, *(weight.row_scale.shape[1] for weight in weights))
        scale = torch.cat([w.row_scale.expand(-1, groups) for w in weights]) * quantizer.scale.float()
        bias = torch.cat([weight.bias for weight in weights])
        if output_scale is not None:
            scale, bias = scale / output_scale[:, None], bias / output_scale
        if quantizer.offset is not None:
            offsets = quantizer.offset.float().expand(groups) / quantizer.scale.float().expand(groups)
            sums = codes.unflatten(1, (groups, -1)).sum(2, dtype=torch.int32)
            for g in range(groups):
                bias = bias + offsets[g] * scale[:, g] * sums[:, g]
        return cls(codes, scale, bias, zero_point(quantizer))

    def times(self, factor: Tensor) -> FoldedProduct:
        """The same, multiplied by one factor an output; float32, (outputs,)."""
        return replace(self, scale=self.scale * factor[:, None], bias=self.bias * factor)


class IntegerGemm(nn.Module):
    """y = sum over column groups g of  s_g (W_g (x_g - z)) + b  with byte codes x, int8 codes W and int32 sums.

    See `FoldedProduct` for what is folded into scales and bias; for the backend without zero points that is the zero
    point as well.

    Everything it holds is derived from the packed codes: its buffers are not saved.

    Args:
        weights: the weights to concatenate.
        quantizer: of the input; its groups may divide the columns.
        backend: "onednn" or "int_mm".
        output_scale: float32, (outputs,), to get the result as centered bytes of quantizers of these scales
            (`codes.CENTER`); none for numbers.
    """

    def __init__(
        self,
        weights: Sequence[ScaledWeight],
        quantizer: PackedActivationQuantizer,
        backend: str,
        output_scale: Tensor | None = None,
    ):
        super().__init__()
        folded = FoldedProduct.of(weights, quantizer, output_scale)
        codes, bias = folded.codes, folded.bias
        self.coded = output_scale is not None
        self.backend = backend
        self.zero_point = folded.zero_point
        self.inputs, self.outputs, self.groups = codes.shape[1], codes.shape[0], folded.scale.shape[1]
        groups, width = self.groups, self.inputs // self.groups
        for g in range(groups):
            part = codes[:, g * width : (g + 1) * width].contiguous()
            self._prepare_part(g, part, folded.scale[:, g].contiguous())
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("no_bias", torch.zeros_like(bias) if groups > 1 else None, persistent=False)
        # Scale and zero point of the weights as oneDNN takes them.
        zeros = torch.zeros(self.outputs, dtype=torch.int32, device=codes.device)
        self.register_buffer("weight_zero_points", zeros if backend == "onednn" else None, persistent=False)

    def _prepare_part(self, g: int, codes: Tensor, scale: Tensor) -> None:
        if self.backend == "onednn":
            packed = torch.ops.onednn.qlinear_prepack(codes, None)
            self.register_buffer(f"weight_{g}", packed, persistent=False)
        else:
            # Bytes become int8 by subtracting 128; what that changes is put right in int32.
            self.register_buffer(
                f"correction_{g}", (128 - self.zero_point) * codes.sum(1, dtype=torch.int32), persistent=False
            )
            rows, columns = codes.shape
            padding = (0, -columns % INT_MM_MULTIPLE, 0, -rows % INT_MM_MULTIPLE)
            self.register_buffer(f"weight_{g}", nn.functional.pad(codes, padding), persistent=False)
        self.register_buffer(f"scale_{g}", scale, persistent=False)

    def forward(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Multiply.

        Args:
            codes: uint8, (..., inputs).
            dtype: of the result, if it is numbers.

        Returns:
            (..., outputs), numbers or bytes.
        """
        if codes.shape[-1] != self.inputs:
            raise ValueError(f"input has {codes.shape[-1]} features, expected {self.inputs}.")
        multiply = self._onednn if self.backend == "onednn" else self._int_mm
        width = self.inputs // self.groups
        if self.groups == 1:
            return multiply(0, codes, self.bias, torch.uint8 if self.coded else dtype)
        # Sums of several products are formed in float32.
        y = multiply(0, codes[..., :width].contiguous(), self.bias, torch.float32)
        for g in range(1, self.groups):
            y = y + multiply(g, codes[..., g * width : (g + 1) * width].contiguous(), self.no_bias, torch.float32)
        return _center(y) if self.coded else y.to(dtype)

    def _onednn(self, g: int, codes: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        out = dtype if dtype in ONEDNN_OUTPUTS else torch.float32
        weight, scale = getattr(self, f"weight_{g}"), getattr(self, f"scale_{g}")
        if torch.compiler.is_compiling() and not _weights_are_constants():
            y = torch.ops.hf_vaq.qlinear(codes, self.zero_point, weight, scale, self.weight_zero_points, bias, out)
        else:
            y = _qlinear(codes, self.zero_point, weight, scale, self.weight_zero_points, bias, out)
        return y if out is dtype else y.to(dtype)

    def _int_mm(self, g: int, codes: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        weight, scale = getattr(self, f"weight_{g}"), getattr(self, f"scale_{g}")
        x = torch.bitwise_xor(codes.reshape(-1, codes.shape[-1]), 128).view(torch.int8)
        rows, columns = x.shape
        missing_rows = max(INT_MM_ROWS, rows) + -max(INT_MM_ROWS, rows) % INT_MM_MULTIPLE - rows
        if x.is_cuda or weight.shape[1] != columns:
            missing_rows = missing_rows if x.is_cuda else 0
            x = nn.functional.pad(x, (0, weight.shape[1] - columns, 0, missing_rows))
        sums = torch._int_mm(x, weight.t())[:rows, : self.outputs] + getattr(self, f"correction_{g}")
        y = (sums.float() * scale + bias).view(*codes.shape[:-1], self.outputs)
        return _center(y) if dtype is torch.uint8 else y.to(dtype)


def _center(y: Tensor) -> Tensor:
    return (y.round() + CENTER).clamp(0, 255).to(torch.uint8)
