"""What the analyses share on the command line: images, the output folder, the last line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shared_arguments import add_dataset

if TYPE_CHECKING:
    import pandas

    from ...analysis.report import Report
    from ...data import LabelledSplit


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool, max_images: int, images_help: str) -> None:
    """Declare which images are used."""
    add_dataset(parser, required=required, purpose="measure")
    parser.add_argument("--max_images", "--max-images", type=int, default=max_images, help=images_help)


def add_common_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """Declare where to compute and where to write."""
    parser.add_argument(
        "--output", type=Path, help=f"folder to write, new or of an earlier analysis (default: {folder})"
    )


def add_compute_arguments(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Declare how to compute."""
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=int,
        default=batch_size,
        help=f"images a forward pass (default: {batch_size})",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: an accelerator where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images (default: 0)")


def split_of(arguments: argparse.Namespace, name: str | None = None) -> LabelledSplit:
    """A split of the data set; the held-out one where none is named."""
    from ...data import LabelledSplit, load_dataset

    dataset = load_dataset(arguments.dataset, arguments.dataset_config)
    return LabelledSplit.select(dataset, name, arguments.image_column, arguments.label_column)


def command_of(arguments: argparse.Namespace) -> str:
    """The command line, to be shown in the report."""
    return shlex.join(["hf-vaq", *arguments.words])


def short_name(model: str) -> str:
    """Name of a model in titles and folders: of a run's folders (float, trained) with the run's name."""
    model = str(model).encode(errors="replace").decode()  # names of folders need not be Unicode; tables and pages are
    parts = [part for part in model.rstrip("/").split("/") if part not in ("", ".", "..")]
    own = ("float", "trained", "packed")
    return "/".join(parts[-2:] if parts and parts[-1] in own else parts[-1:]) or model


def versions() -> dict[str, str]:
    """Versions of the packages that matter."""
    import platform

    import torch
    import transformers

    from ... import __version__

    return {
        "hf_vaq": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def finish(folder: Path, report: Report, results: Mapping[str, Any], tables: Mapping[str, pandas.DataFrame]) -> None:
    """Write the folder and say where the report is."""
    from ...analysis.report.writing import REPORT, write_analysis

    write_analysis(folder, report, results, tables)
    print(f"\n{report.summary}\nWritten to {folder}: {REPORT}, results.json, tables/, figures/")
