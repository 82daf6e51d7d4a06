"""Weights in the smallest type of a format that holds their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from packaging.version import Version

from .extra import load_extra

if TYPE_CHECKING:
    import onnx

INT2_OPSET = 25
"""The first operator set of ONNX with 2-bit integers."""
INT2_RUNTIME = Version("1.24")
"""The first ONNX Runtime that widens them. There is none for Python 3.10."""


def code_bits(codes: np.ndarray) -> int:
    """The narrowest of 2, 4 and 8 bits that holds signed integer codes.

    There is no 3-bit type in ONNX. A tensor of more bits whose codes happen to be small is narrowed too: no value
    changes.
    """
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    return next(bits for bits in (2, 4, 8) if low >= -(1 << bits - 1) and high < 1 << bits - 1)


def runtime_has_int2() -> bool:
    """Whether the installed ONNX Runtime reads 2-bit integers."""
    return Version(load_extra("onnxruntime", "onnx").__version__) >= INT2_RUNTIME


def narrow_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store int8 codes as int4, or as int2 where the operator set has it, in place.

    A Cast makes int8 of them again. ONNX Runtime does that once, when it loads the file, and then finds the pattern
    that it computes in integers; it does not find it where DequantizeLinear reads the narrow type itself.
    """
    onnx = load_extra("onnx", "onnx")
    types = {4: onnx.TensorProto.INT4}
    if onnx_opset(model) >= INT2_OPSET:
        types[2] = onnx.TensorProto.INT2
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.INT8 or not tensor.dims:
            continue
        codes = onnx.numpy_helper.to_array(tensor)
        needed = code_bits(codes)
        bits = min((width for width in types if width >= needed), default=8)
        if bits == 8:
            continue
        name = tensor.name
        narrow = onnx.TensorProto(
            name=f"{name}.int{bits}", dims=codes.shape, data_type=types[bits], raw_data=pack_little_endian(codes, bits)
        )
        tensor.CopyFrom(narrow)
        casts.append(onnx.helper.make_node("Cast", [narrow.name], [name], f"{name}.widen", to=onnx.TensorProto.INT8))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    return model


def pack_little_endian(codes: np.ndarray, bits: int) -> bytes:
    """Two's-complement integers of 2 or 4 bits, the first in the lowest bits of each byte, as ONNX stores them."""
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.int8).view(np.uint8) & ((1 << bits) - 1)
    columns = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    packed = np.zeros(len(columns), np.uint8)
    for index in range(per_byte):
        packed |= columns[:, index] << (bits * index)
    return packed.tobytes()


def onnx_opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set of a model."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
