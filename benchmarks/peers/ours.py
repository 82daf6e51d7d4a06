"""hf_vaq's own ways to run a packed model: the integer engine, and its exports in the other runtimes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging

import hf_vaq
from hf_vaq.inference import compile_model

from . import onnx_runtime, openvino_runtime
from .contestant import Builder, Contestant, Task

BITS = (4, 2)


def packed_folder(task: Task, bits: int) -> Path:
    """Folder of a packed model with random weights, made where it is missing."""
    folder = task.folder / f"w{bits}a{bits}"
    if not folder.exists():
        logging.disable_progress_bar()
        model = hf_vaq.quantize(task.copy(), hf_vaq.QuantConfig(weight_bits=bits, activation_bits=bits))
        hf_vaq.calibrate(model, task.calibration())
        unfinished = folder.with_name(folder.name + ".partial")
        hf_vaq.pack(model).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def load(task: Task, bits: int) -> PreTrainedModel:
    """The packed model as a user loads it."""
    return AutoModelForImageClassification.from_pretrained(packed_folder(task, bits)).eval()


def eager(task: Task, bits: int) -> Contestant:
    return _native(load(task, bits), task, bits)


def compiled(task: Task, bits: int) -> Contestant:
    return _native(compile_model(load(task, bits)), task, bits)


def in_onnx_runtime(task: Task, bits: int) -> Contestant:
    folder = task.folder / f"w{bits}a{bits}_onnx"
    if not folder.exists():
        from hf_vaq.export import export_onnx

        export_onnx(load(task, bits), folder, verify=False)
    return onnx_runtime.session(next(folder.glob("*.onnx")), task)


def in_openvino(task: Task, bits: int, precision: str = "f32") -> Contestant:
    folder = task.folder / f"w{bits}a{bits}_openvino"
    if not folder.exists():
        from hf_vaq.export import export_openvino

        export_openvino(load(task, bits), folder, verify=False)
    return openvino_runtime.compiled(next(folder.glob("*.xml")), task, precision)


WAYS = {
    "compiled": compiled,
    "eager": eager,
    "OpenVINO export": in_openvino,
    "OpenVINO export, rest in bfloat16": partial(in_openvino, precision="bf16"),
    "ONNX export": in_onnx_runtime,
}
BUILDERS: dict[str, Builder] = {
    f"hf_vaq W{bits}A{bits}, {name}": partial(way, bits=bits) for bits in BITS for name, way in WAYS.items()
}


def _native(model, task: Task, bits: int) -> Contestant:
    pixels = task.pixels()

    def run():
        with torch.inference_mode():
            return model(pixel_values=pixels).logits

    size = sum(file.stat().st_size for file in packed_folder(task, bits).glob("*.safetensors"))
    return Contestant(run, size, model.execution)
