"""Packed models for other runtimes: ONNX (for ONNX Runtime) and OpenVINO, computed in integers there."""

from .agreement import Agreement, ExportDisagreementError
from .exporting import ExportReport, export_onnx, export_openvino
from .formats import FORMATS
from .runtimes import IntegerProducts

__all__ = [
    "FORMATS",
    "Agreement",
    "ExportDisagreementError",
    "ExportReport",
    "IntegerProducts",
    "export_onnx",
    "export_openvino",
]
