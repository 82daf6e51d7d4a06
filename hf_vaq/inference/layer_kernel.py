"""What the kernel of a whole transformer layer reads, laid out in memory as layer.h declares it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..numerics.levels import integer_range
from .gemm import FoldedProduct
from .native import kernels
from .native.kept import Kept
from .staircase import Staircase

POINTER, LONG, INT, FLOAT, BOOL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_bool
LANES = 16  # numbers in a vector


class _Quantizer(ctypes.Structure):
    _fields_ = [("scale", FLOAT), ("offset", FLOAT), ("qn", FLOAT), ("qp", FLOAT), ("has_offset", BOOL)]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", POINTER), ("bias", POINTER), ("epsilon", FLOAT), ("quantizer", _Quantizer)]


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, POINTER) for name in ("weight", "start", "scale", "bias")),
        *((name, LONG) for name in ("inputs", "outputs", "groups")),
    ]


class _Staircase(ctypes.Structure):
    _fields_ = [("breakpoints", POINTER), ("codes", POINTER), ("count", INT)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("before", _Norm),
        ("after", _Norm),
        *((name, _Product) for name in ("projections", "output", "first", "second")),
        ("activation", _Staircase),
        ("heads", LONG),
        ("head_dim", LONG),
        ("scales", POINTER),
        ("levels", FLOAT * 10),
        ("scaling", FLOAT),
    ]


class _Windows(ctypes.Structure):
    _fields_ = [("count", LONG), ("tokens", LONG), ("source", POINTER), ("kinds", POINTER), ("mask", POINTER)]


class LayerKernel(Kept):
    """A transformer layer as `Layer` in layer.h.

    Args:
        norms: before the attention and before the linear layers; each with the quantizer of its output.
        products: queries, keys and values side by side, as centered bytes; output projection; the two linear layers.
        activation: between the linear layers.
        scales: float32, (5, heads): of query, key, value, probabilities and output of the attention.
        levels: lowest and highest codes of those five.
        scaling: factor on the scores.
    """

    def __init__(
        self,
        norms: Sequence[tuple[nn.LayerNorm, PackedActivationQuantizer]],
        products: Sequence[FoldedProduct],
        activation: Staircase,
        scales: Tensor,
        levels: Sequence[float],
        scaling: float,
    ):
        super().__init__()
        heads = scales.shape[1]
        self.width = products[1].codes.shape[0]
        self._layer = _Layer(
            *(self._norm(*norm) for norm in norms),
            *map(self._product, products),
            self._staircase(activation),
            heads,
            products[1].codes.shape[1] // heads,
            self.keep(scales),
            (FLOAT * 10)(*levels),
            scaling,
        )
        self.address = ctypes.addressof(self._layer)

    def _norm(self, norm: nn.LayerNorm, quantizer: PackedActivationQuantizer) -> _Norm:
        offset = 0.0 if quantizer.offset is None else float(quantizer.offset)
        levels = integer_range(quantizer.bits, quantizer.signed)
        coded = _Quantizer(float(quantizer.scale), offset, *levels, quantizer.offset is not None)
        return _Norm(self.keep(norm.weight), self.keep(norm.bias), norm.eps, coded)

    def _staircase(self, staircase: Staircase) -> _Staircase:
        breakpoints, codes, count = staircase.padded()
        return _Staircase(self.keep(breakpoints), self.keep(codes), count)

    def _product(self, product: FoldedProduct) -> _Product:
        outputs, inputs = product.codes.shape
        groups = product.scale.shape[1]
        padded = -(-outputs // LANES) * LANES
        words = -(-inputs // groups // 4)
        weight = torch.zeros(groups * padded * words * 4, dtype=torch.int8)
        start = torch.zeros(groups, padded, dtype=torch.int32)
        scale, bias = torch.zeros(groups, padded), torch.zeros(padded)
        scale[:, :outputs], bias[:outputs] = product.scale.t(), product.bias
        codes = product.codes.contiguous()
        kernels().vaq_pack_weight(
            codes.data_ptr(),
            outputs,
            inputs,
            groups,
            product.zero_point,
            weight.data_ptr(),
            start.data_ptr(),
        )
        return _Product(*map(self.keep, (weight, start, scale, bias)), inputs, outputs, groups)


class WindowsKernel(Kept):
    """How the tokens of an image form windows, as `Windows` in layer.h.

    Args:
        tokens: tokens of an image.
        source: int32, (windows, tokens of a window): which token of the image, -1 for padding; None: one window of
            all tokens in their order.
        kinds: int32, (windows,): which of the masks a window has; None: the first.
        mask: float32, (masks, heads, tokens of a window, tokens of a window), added to the scores.
    """

    def __init__(
        self, tokens: int, source: Tensor | None = None, kinds: Tensor | None = None, mask: Tensor | None = None
    ):
        super().__init__()
        self.tokens = tokens
        count, size = (1, tokens) if source is None else source.shape
        self._windows = _Windows(count, size, self.keep(source), self.keep(kinds), self.keep(mask))
        self.address = ctypes.addressof(self._windows)
