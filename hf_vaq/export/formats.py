"""The formats that a packed model is exported to: how each is written, opened and looked into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nn import PackedWeight
from .extra import load_extra
from .lowering import lower
from .narrow import INT2_OPSET, code_bits, narrow_onnx, runtime_has_int2
from .openvino_graph import to_openvino
from .quantizers import ONNX_OPSET, OnnxQuantizer, OpenVinoQuantizer
from .runtimes import (
    OPENVINO_SETTINGS,
    IntegerProducts,
    Runtime,
    integer_products_onnx,
    integer_products_openvino,
    open_onnx,
    open_openvino,
)
from .tracing import trace


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as the command takes it; also the name of the extra.
        file: name of the file that a runtime opens.
        write: writes a packed model into a folder, and returns what else `export.json` should say of the files.
        open: opens the file in its runtime, on the CPU.
        integer_products: asks the runtime which products it computes in integers.
    """

    name: str
    file: str
    write: Callable[[Any, Path], dict[str, Any]]
    open: Callable[[Path], Runtime]
    integer_products: Callable[[Path], IntegerProducts]


def write_onnx(model: Any, folder: Path) -> dict[str, Any]:
    """Write `model.onnx`: operator set 25 if codes fit into 2 bits, else 21, the first with 4-bit integers.

    Where the installed ONNX Runtime knows no 2-bit integers, 2-bit codes are stored in 4 bits.
    """
    onnx = load_extra("onnx", "onnx")
    two_bits = any(
        code_bits(module.codes().numpy()) == 2 for module in model.modules() if isinstance(module, PackedWeight)
    )
    opset = INT2_OPSET if two_bits and runtime_has_int2() else ONNX_OPSET
    exported = narrow_onnx(trace(lower(model, OnnxQuantizer), opset))
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, folder / ONNX.file)
    return {"opset": opset}


def write_openvino(model: Any, folder: Path) -> dict[str, Any]:
    """Write `model.xml` and `model.bin`."""
    openvino = load_extra("openvino", "openvino")
    exported = to_openvino(trace(lower(model, OpenVinoQuantizer), ONNX_OPSET))
    # What is not a code stays float32: scales and biases in float16 would be others.
    openvino.save_model(exported, folder / OPENVINO.file, compress_to_fp16=False)
    return {"compile": OPENVINO_SETTINGS}


ONNX = Format("onnx", "model.onnx", write_onnx, open_onnx, integer_products_onnx)
OPENVINO = Format("openvino", "model.xml", write_openvino, open_openvino, integer_products_openvino)
FORMATS = {format.name: format for format in (ONNX, OPENVINO)}
