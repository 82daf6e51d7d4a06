"""Ways to run a model on given pixels, each as a callable that returns when its work is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..export import FORMATS, ExportReport, export_onnx, export_openvino
from ..export.extra import MODULES, load_extra
from ..inference import compile_model
from ..nn import PackedWeight

Call = Callable[[], object]

EXPORTS = ("onnx", "openvino")
BACKENDS = ("eager", "compiled", *EXPORTS)
"""PyTorch as it is, with `torch.compile`, and the exports in ONNX Runtime and OpenVINO."""


def choose_backends(wanted: Sequence[str] | None, device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Return which backends to measure, and why each other one is left out.

    Args:
        wanted: names in `BACKENDS`, all of which must be possible; None takes every one that is.
        device: of the models; the exports are measured on the CPU only.

    Raises:
        ValueError: an unknown name, or a named export whose extra is not installed or which is not for this device.
    """
    unknown = [name for name in wanted or () if name not in BACKENDS]
    if unknown:
        raise ValueError(f"backends holds {unknown[0]!r}; accepted: {', '.join(map(repr, BACKENDS))}.")
    chosen, left_out = [], {}
    for name in BACKENDS:
        reason = _obstacle(name, device)
        if wanted is not None and name in wanted and reason is not None:
            raise ValueError(f"backends holds {name!r}, but {reason}.")
        if reason is not None:
            left_out[name] = reason
        elif wanted is None or name in wanted:
            chosen.append(name)
    return chosen, {} if wanted is not None else left_out


def _obstacle(name: str, device: torch.device) -> str | None:
    if name not in EXPORTS:
        return None
    if device.type != "cpu":
        return f"exports are measured on the CPU, not on {str(device)!r}"
    missing = [module for module in MODULES[name] if find_spec(module) is None]
    if missing:
        return f"{missing[0]} is not installed: pip install 'hf-vaq[{name}]'"
    return None


def is_packed(model: nn.Module) -> bool:
    """Return whether a model holds packed layers."""
    return any(isinstance(module, PackedWeight) for module in model.modules())


def eager_call(model: Callable, pixels: Tensor) -> Call:
    """Forward pass of a model, waiting for the accelerator where there is one."""

    def call() -> Tensor:
        with torch.inference_mode():
            logits = model(pixel_values=pixels).logits
            if pixels.device.type != "cpu":
                torch.accelerator.synchronize(pixels.device)
            return logits

    return call


def compiled(model: PreTrainedModel) -> Callable:
    """A model under `torch.compile`: a packed one with the settings of `hf_vaq.inference.compile_model`."""
    return compile_model(model) if is_packed(model) else torch.compile(model)


def onnx_call(path: Path, pixels: Tensor, threads: int) -> Call:
    """Run an ONNX file in ONNX Runtime, on the CPU.

    Raises:
        ValueError: ONNX Runtime is not installed.
    """
    onnxruntime = load_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would go on spinning after a call, beside whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: pixels.numpy()}
    return lambda: session.run(None, inputs)[0]


def openvino_call(path: Path, pixels: Tensor, threads: int, precision: str = "f32") -> Call:
    """Run an OpenVINO model on the CPU, for latency.

    Args:
        path: the `.xml` file.
        precision: of what is not quantized: "f32", as the export is meant to be run, or "bf16".

    Raises:
        ValueError: OpenVINO is not installed.
    """
    openvino = load_extra("openvino", "openvino")
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(pixels.shape))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    array = pixels.numpy()
    return lambda: request.infer({0: array})[0]


def export(model: PreTrainedModel, backend: str, folder: Path) -> ExportReport:
    """Export a packed model for its speed alone: its answers are not compared.

    Raises:
        ValueError: the extra is not installed, or the model cannot be exported.
    """
    return (export_onnx if backend == "onnx" else export_openvino)(model, folder, verify=False)


def exported_call(report: ExportReport, pixels: Tensor, threads: int) -> Call:
    """Run an export in the runtime it is for."""
    path = report.folder / FORMATS[report.format].file
    return (onnx_call if report.format == "onnx" else openvino_call)(path, pixels, threads)
