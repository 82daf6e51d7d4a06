"""From the module of a runtime to an ONNX model."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from .lowering import ExportedModel

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "pixel_values", "logits"
BATCH = "batch"


def trace(module: ExportedModel, opset: int) -> onnx.ModelProto:
    """Trace a module into an ONNX model with a batch of any size and images of the model's own size.

    Raises:
        ValueError: the model's configuration states no image size.
    """
    example = torch.zeros(2, *input_shape(module.model.config))
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim(BATCH)}},
            verbose=False,
        )
    return _without_traces(program.model_proto)


def input_shape(config: object) -> tuple[int, int, int]:
    """Channels, height and width of the images of a model.

    Raises:
        ValueError: its configuration states no image size.
    """
    size = getattr(config, "image_size", None)
    if size is None:
        raise ValueError(f"{type(config).__name__} has no image_size, so the exported input would have no size.")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop where in the Python code each node comes from: it doubles the file, and names paths of this machine."""
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    return model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """torch's exporter warns of its own changes and prints progress; a library is silent."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
