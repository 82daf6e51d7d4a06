"""The exported files in their runtimes: how they are run, and which products a runtime computes in integers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .agreement import Runtime
from .extra import load_extra
from .tracing import INPUT

OPENVINO_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}
"""What is not quantized stays float32. By itself OpenVINO takes bfloat16 for it on CPUs that have it, which moves more
values across the thresholds of the quantizers, and gains a few percent where the products are integer."""

ORT_INTEGER = frozenset(
    ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv", "ConvInteger", "QAttention")
)
ORT_FLOAT = frozenset(
    ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "Attention", "MultiHeadAttention")
)
OPENVINO_INTEGER = frozenset({"i8", "u8"})
OPENVINO_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution"})


@dataclass(frozen=True)
class IntegerProducts:
    """Of the matrix products and convolutions of a model, how many a runtime computes in integers."""

    integer: int
    total: int


def open_onnx(path: Path) -> Runtime:
    """Open an ONNX file in ONNX Runtime, on the CPU."""
    session = _session(path)
    return lambda pixel_values: session.run(None, {INPUT: pixel_values})[0]


def integer_products_onnx(path: Path) -> IntegerProducts:
    """Count the operators in the graph as ONNX Runtime has optimized it for this CPU."""
    onnx = load_extra("onnx", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        _session(path, optimized)
        names = [node.op_type for node in onnx.load(optimized).graph.node]
    integer = sum(name in ORT_INTEGER for name in names)
    return IntegerProducts(integer, integer + sum(name in ORT_FLOAT for name in names))


def open_openvino(path: Path) -> Runtime:
    """Open an OpenVINO model on the CPU, in the precision that the export states."""
    compiled = _compiled(path)

    def run(pixel_values: np.ndarray) -> np.ndarray:
        return compiled({INPUT: pixel_values})[0].copy()

    return run


def integer_products_openvino(path: Path) -> IntegerProducts:
    """Count by the precisions that the runtime's own execution graph states.

    A fused attention (one "Subgraph" from queries to context) counts as two products; it is an integer one if it reads
    8-bit integers.
    """
    integer = total = 0
    for node in _compiled(path).get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind in OPENVINO_PRODUCTS:
            count = 1
        elif kind == "Subgraph" and "softmax" in facts["originalLayersNames"].astype(str).lower():
            count = 2
        else:
            continue
        total += count
        integer += count * (facts["runtimePrecision"].astype(str) in OPENVINO_INTEGER)
    return IntegerProducts(integer, total)


def _session(path: Path, optimized: Path | None = None):
    onnxruntime = load_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimized file is for one kind of CPU
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _compiled(path: Path):
    return load_extra("openvino", "openvino").Core().compile_model(str(path), "CPU", OPENVINO_SETTINGS)
