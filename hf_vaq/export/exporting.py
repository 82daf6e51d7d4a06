"""Export a packed model: the file of a runtime, and beside it all that is needed to run it without this package."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..config import QuantConfig
from ..job.output import new_folder
from ..packing import pack
from .agreement import Agreement, compare, sample_images
from .bundle import SETTINGS_FILE, foreign_to_export, write_bundle
from .extra import MODULES, check_extra
from .formats import ONNX, OPENVINO, Format
from .runtimes import IntegerProducts
from .settings import image_settings, label_names
from .tracing import BATCH, INPUT, OUTPUT, input_shape

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and found.

    Attributes:
        folder: where the files are.
        format: "onnx" or "openvino".
        size_bytes: size of the files of the runtime.
        products: matrix products and convolutions, and how many of them the runtime computes in integers.
        agreement: comparison with the packed model; None if it was not asked for.
    """

    folder: Path
    format: str
    size_bytes: int
    products: IntegerProducts
    agreement: Agreement | None


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    image_processor: Any = None,
    batches: Iterable[Tensor] | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> ExportReport:
    """Export to ONNX, in the form that ONNX Runtime computes in integers; needs the extra `onnx`.

    The folder then holds model.onnx, export.json, README.md and, with an image processor, preprocessor_config.json and
    run.py, which classifies pictures with numpy, pillow and the runtime alone.

    Args:
        model: an image classifier; one in training form is packed first (and a warning says so). It is not changed.
        folder: to write; it appears whole or not at all.
        image_processor: the transformers image processor of the model.
        batches: pixel values, float32 (batch, channels, height, width), on which runtime and packed model are
            compared; seeded noise if there are none.
        verify: whether they are compared at all.
        overwrite: whether an earlier export in `folder` is replaced.

    Raises:
        ValueError: the extra is missing; the model is not quantized or not float32; the folder holds something or
            cannot be written; the processor makes images of another size than the model takes; a batch has another
            shape or type.
        ExportDisagreementError: the runtime's answers differ by more than rounding explains. Nothing is then written.
    """
    return _export(ONNX, model, Path(folder), image_processor, batches, verify, overwrite)


def export_openvino(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    image_processor: Any = None,
    batches: Iterable[Tensor] | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> ExportReport:
    """Export to OpenVINO, in the form that it computes in integers; needs the extra `openvino`.

    The folder then holds model.xml, model.bin and the same files beside them; for arguments and errors see
    `export_onnx`.
    """
    return _export(OPENVINO, model, Path(folder), image_processor, batches, verify, overwrite)


def packed_form(model: PreTrainedModel) -> PreTrainedModel:
    """The packed model to export: `model` itself, or what a model in training form is packed to.

    Raises:
        ValueError: the model is not quantized.
    """
    model = extract_model_from_parallel(model)
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, QuantConfig):
        raise ValueError(
            f"this {type(model).__name__} is not quantized by hf_vaq; accepted: a packed model, or one in training"
            " form. For a full-precision model use the exporter of torch or of OpenVINO."
        )
    if config.packed:
        return model
    logger.warning(f"this {type(model).__name__} is in training form: what is exported is hf_vaq.pack(model).")
    return pack(model)


def _export(
    format: Format,
    model: PreTrainedModel,
    folder: Path,
    image_processor: Any,
    batches: Iterable[Tensor] | None,
    verify: bool,
    overwrite: bool,
) -> ExportReport:
    check_extra(format.name)
    check_folder(folder, overwrite)
    packed = packed_form(model)
    shape = _check_model(packed)
    steps = None if image_processor is None else image_settings(image_processor, packed.config)
    images = None
    if verify:
        images = sample_images(shape) if batches is None else _checked(batches, shape)
    packed = copy.deepcopy(packed).to("cpu")
    with new_folder(folder, replace=overwrite) as partial:
        details = format.write(packed, partial)
        size = sum(file.stat().st_size for file in partial.iterdir())
        path = partial / format.file
        agreement = None
        if images is not None:
            agreement = compare(packed, format.open(path), images)
            agreement.check(f"the {format.name} export")
        report = ExportReport(folder, format.name, size, format.integer_products(path), agreement)
        write_bundle(partial, {**_settings(format, packed, shape, steps), **details}, report, image_processor)
    return report


def _settings(
    format: Format, model: PreTrainedModel, shape: tuple[int, int, int], steps: dict[str, Any] | None
) -> dict[str, Any]:
    config = model.config.quantization_config
    return {
        "format": format.name,
        "file": format.file,
        "architecture": type(model).__name__,
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
        "edge_bits": config.edge_bits,
        "input": {"name": INPUT, "type": "float32", "shape": [BATCH, *shape]},
        "output": {"name": OUTPUT, "type": "float32", "shape": [BATCH, model.config.num_labels]},
        "labels": label_names(model.config),
        "image": steps,
        "versions": {name: version(name) for name in ("hf-vaq", "torch", "transformers", *MODULES[format.name])},
    }


def check_folder(folder: Path, overwrite: bool = False) -> None:
    """Refuse a folder in use, before any work; only what an export wrote is ever replaced.

    Raises:
        ValueError: `folder` is a file, holds something that is not to be replaced, or cannot be read.
    """
    try:
        entries = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise ValueError(f"{str(folder)!r} cannot be used as a folder: {error.strerror or error}.") from error
    if entries and not overwrite:
        raise ValueError(
            f"{str(folder)!r} is not empty; accepted: a folder that is empty or does not exist, or that holds an"
            " export with overwrite (on the command line --overwrite)."
        )
    if entries and (foreign := foreign_to_export(folder)):
        raise ValueError(
            f"{str(folder)!r} holds {foreign[0]!r}, which no export wrote (by the list in {SETTINGS_FILE}), so it is"
            " not overwritten; accepted: a folder that is empty, does not exist, or holds an export."
        )


def _check_model(model: PreTrainedModel) -> tuple[int, int, int]:
    if model.dtype != torch.float32:
        raise ValueError(
            f"this {type(model).__name__} has type {str(model.dtype).removeprefix('torch.')}; accepted:"
            " float32. Load it with dtype=torch.float32."
        )
    if not getattr(model.config, "num_labels", 0) or "ForImageClassification" not in type(model).__name__:
        raise ValueError(f"{type(model).__name__} is no image classifier; accepted: ...ForImageClassification.")
    return input_shape(model.config)


def _checked(batches: Iterable[Tensor], shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """The batches, each refused or passed on when it is drawn; the first one now, before the export takes its time."""
    checked = (_checked_batch(batch, shape) for batch in batches)
    first = list(itertools.islice(checked, 1))
    return itertools.chain(first, checked)


def _checked_batch(batch: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if batch.dim() != 4 or tuple(batch.shape[1:]) != shape or batch.dtype != torch.float32:
        raise ValueError(
            f"a batch has shape {tuple(batch.shape)} and type {str(batch.dtype).removeprefix('torch.')}; accepted:"
            f" (any, {', '.join(map(str, shape))}), float32."
        )
    return batch
