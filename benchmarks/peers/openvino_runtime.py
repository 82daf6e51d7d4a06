"""OpenVINO: float32, bfloat16, and int8 by NNCF."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from .contestant import Contestant, Logits, Task


def float32(task: Task) -> Contestant:
    return compiled(converted(task), task, "f32")


def bfloat16(task: Task) -> Contestant:
    return compiled(converted(task), task, "bf16")


def nncf_int8(task: Task) -> Contestant:
    """Post-training quantization of NNCF with its settings for transformers."""
    import nncf
    import openvino

    path = task.folder / "nncf_int8.xml"
    if not path.exists():
        dataset = nncf.Dataset([batch.numpy() for batch in task.calibration()])
        model = nncf.quantize(
            openvino.Core().read_model(converted(task)),
            dataset,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(task.calibration()),
        )
        _save(model, path)
    # beside int8, what is left in floating point may be bfloat16: OpenVINO's own default on this processor
    return compiled(path, task, None)


BUILDERS = {"OpenVINO float32": float32, "OpenVINO bfloat16": bfloat16, "OpenVINO int8 (NNCF)": nncf_int8}


def converted(task: Task) -> Path:
    """The float32 model in OpenVINO's format, with a free batch size; returns its path."""
    import openvino

    path = task.folder / "float32.xml"
    if not path.exists():
        with torch.no_grad():
            model = openvino.convert_model(Logits(task.copy()), example_input=task.pixels(2))
        model.reshape([-1, *task.pixels().shape[1:]])
        _save(model, path)
    return path


def compiled(path: Path, task: Task, precision: str | None) -> Contestant:
    """A compiled model of OpenVINO, tuned for latency; `precision` None leaves the choice to OpenVINO."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    model = core.read_model(path)
    # of a fixed shape, as OpenVINO recommends where the shape is known
    model.reshape(list(task.pixels().shape))
    executable = core.compile_model(model, "CPU", settings)
    request = executable.create_infer_request()
    pixels = task.pixels().numpy()

    def run():
        return request.infer({0: pixels})[0]

    size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
    return Contestant(run, size, _precisions(executable))


def _precisions(executable) -> str:
    """How many operations of the runtime's own execution graph compute in which type."""
    counts = Counter()
    for node in executable.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = info["layerType"].astype(str)
        if kind in ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention"):
            counts[f"{kind} {info['runtimePrecision'].astype(str)}"] += 1
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))


def _save(model, path: Path) -> None:
    import openvino

    partial = path.with_name(path.stem + "_partial.xml")
    openvino.save_model(model, partial, compress_to_fp16=False)
    # the weights first: a folder that has the .xml has both
    partial.with_suffix(".bin").rename(path.with_suffix(".bin"))
    partial.rename(path)
