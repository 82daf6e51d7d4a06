"""`hf-vaq export MODEL OUT --format onnx|openvino`: a packed model for another runtime."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .shared_arguments import add_dataset

HELP = "Export a packed model to ONNX or OpenVINO, and compare its answers there with its own."
FORMATS = ("onnx", "openvino")  # of hf_vaq.export.FORMATS, whose import is slow
BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="local folder or Hub id of a packed model, or of one in training form"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")
    parser.add_argument(
        "--no_verify",
        "--no-verify",
        action="store_true",
        help="do not compare the answers with the packed model",
    )
    add_dataset(parser, required=False, purpose="compare")
    parser.add_argument("--max_images", "--max-images", type=int, help="of the split to compare on (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Export and print a table; the folder appears whole or not at all."""
    from .. import QuantConfig, pack
    from ..export import FORMATS as formats
    from ..export import export_onnx, export_openvino
    from ..export.exporting import check_folder, packed_form
    from ..export.extra import check_extra
    from ..job.models import load_image_processor, load_model
    from ..tables import format_table

    if arguments.no_verify and arguments.dataset:
        raise ValueError("--no_verify and --dataset exclude each other: the data set is what is compared on.")
    check_extra(arguments.format)
    check_folder(arguments.out, arguments.overwrite)
    model = load_model(arguments.model)
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, QuantConfig) and not config.packed:
        print(f"hf-vaq: {arguments.model} is in training form: it is packed first", file=sys.stderr, flush=True)
        model = pack(model)
    packed = packed_form(model)
    processor = load_image_processor(arguments.model)
    batches = _batches(arguments, processor, packed) if arguments.dataset else None
    export = {"onnx": export_onnx, "openvino": export_openvino}[arguments.format]
    print(f"hf-vaq: exporting {arguments.model} to {arguments.format}", file=sys.stderr, flush=True)
    report = export(
        packed,
        arguments.out,
        image_processor=processor,
        batches=batches,
        verify=not arguments.no_verify,
        overwrite=arguments.overwrite,
    )
    header = ["", "size", "integer products"]
    row = [
        formats[arguments.format].file,
        f"{report.size_bytes / 1000:,.1f} kB",
        f"{report.products.integer} of {report.products.total}",
    ]
    if report.agreement is not None:
        agreement = report.agreement
        header += ["same top-1", "largest logit difference", "median", "of rounding alone"]
        row += [
            f"{agreement.same_top1} of {agreement.images}",
            f"{agreement.max_logit_difference:.3g}",
            f"{agreement.median_logit_difference:.3g}",
            f"{agreement.own_median_logit_difference:.3g}",
        ]
    print(format_table([header, row]))
    images = "not compared" if arguments.no_verify else f"compared on {arguments.dataset or 'seeded noise'}"
    print(f"{images}\nWritten to {report.folder}: {', '.join(sorted(path.name for path in report.folder.iterdir()))}")
    return 0


def _batches(arguments: argparse.Namespace, processor: Any, model: Any) -> Iterator[Any]:
    """Pixel values of the images of the data set, a few at a time; the data set is checked at once."""
    import torch

    from ..data import LabelledSplit, check_input_format, load_dataset

    check_input_format(processor, model.config)
    dataset = load_dataset(arguments.dataset, arguments.dataset_config)
    split = LabelledSplit.select(dataset, arguments.split, arguments.image_column, arguments.label_column)
    images = split.limited(arguments.max_images).evaluation_set(model.config.id2label, processor)

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(images), BATCH):
            rows = range(start, min(start + BATCH, len(images)))
            yield torch.stack([images[row]["pixel_values"] for row in rows])

    return batches()
