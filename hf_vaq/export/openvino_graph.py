"""From an ONNX model with OpenVINO's FakeQuantize to an OpenVINO model, and what the runtime makes of that."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .extra import load_extra
from .narrow import code_bits

if TYPE_CHECKING:
    import onnx
    import openvino


def to_openvino(model: onnx.ModelProto) -> openvino.Model:
    """Read an ONNX model into OpenVINO, with weights in the smallest type that holds their codes."""
    onnx = load_extra("onnx", "openvino")
    openvino = load_extra("openvino", "openvino")
    # From a file: OpenVINO reads no serialized model from memory into a Model that outlives the buffer.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        converted = openvino.Core().read_model(path)
        narrow_openvino(converted)
        return converted.clone()


def narrow_openvino(model: openvino.Model) -> None:
    """Store int8 constants as i4 or u2, in place, and widen them to i8 again, which compiling the model does once.

    The low-precision transformations look for int8 weights: a floating-point conversion of the narrow type itself is
    taken for weight-only compression, and the product is then no integer one.
    """
    openvino = load_extra("openvino", "openvino")
    opset = load_extra("openvino.opset15", "openvino")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.i8 or not node.get_shape():
            continue
        codes = np.array(node.get_data())
        bits = code_bits(codes)
        if bits == 8:
            continue
        readers = list(node.output(0).get_target_inputs())
        if bits == 4:
            widened = opset.convert(opset.constant(codes, dtype=openvino.Type.i4), "i8")
        else:  # there is no signed 2-bit type
            unsigned = opset.convert(opset.constant(codes + 2, dtype=openvino.Type.u2), "i8")
            widened = opset.subtract(unsigned, opset.constant(np.array(2, np.int8)))
        for reader in readers:
            reader.replace_source_output(widened.output(0))
