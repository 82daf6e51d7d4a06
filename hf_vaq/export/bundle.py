"""What stands beside the file of a runtime, so that it runs without this package."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..job.output import write_json, write_text
from ..job.run_files import files_below
from ..tables import bits_name

if TYPE_CHECKING:
    from .exporting import ExportReport

SETTINGS_FILE = "export.json"
RUN_FILE = "run.py"
RUNTIME_PACKAGE = {"onnx": "onnxruntime", "openvino": "openvino"}


def write_bundle(folder: Path, settings: dict[str, Any], report: ExportReport, image_processor: Any) -> None:
    """Write export.json and README.md, and with an image processor its own settings and run.py.

    Args:
        folder: which holds the file of the runtime.
        settings: what export.json says of model and file.
        report: what the export found.
        image_processor: a transformers image processor, or None.
    """
    facts = {
        "size_bytes": report.size_bytes,
        "products": dataclasses.asdict(report.products),
        "agreement": None if report.agreement is None else dataclasses.asdict(report.agreement),
    }
    write_text(folder / "README.md", _readme(settings, report))
    if image_processor is not None:
        image_processor.save_pretrained(folder)
        shutil.copyfile(Path(__file__).parent / "bundled" / RUN_FILE, folder / RUN_FILE)
    # What another export may replace.
    files = sorted([*files_below(folder), SETTINGS_FILE])
    write_json(folder / SETTINGS_FILE, {**settings, **facts, "files": files})


def foreign_to_export(folder: Path) -> list[str]:
    """List the files in a folder that no export wrote, by the list in its export.json."""
    try:
        written = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))["files"]
        written = set(written) if isinstance(written, list) else set()
    except (OSError, ValueError, KeyError, TypeError):
        written = set()
    return [name for name in files_below(folder) if name not in written]


def _readme(settings: dict[str, Any], report: ExportReport) -> str:
    bits = bits_name(settings["weight_bits"], settings["activation_bits"])
    shape = ", ".join(map(str, settings["input"]["shape"]))
    runtime = RUNTIME_PACKAGE[settings["format"]]
    opset = f" (operator set {settings['opset']})" if "opset" in settings else ""
    lines = [
        f"# {settings['architecture']}, {bits}, for {runtime}",
        "",
        f"`{settings['file']}`{opset} takes `{settings['input']['name']}`, float32 ({shape}), and gives"
        f" `{settings['output']['name']}`, float32 (batch, {len(settings['labels'])}). Batches may have any"
        " size.",
        "",
        f"{report.products.integer} of its {report.products.total} matrix products and convolutions ran in 8-bit"
        f" integers where it was exported. `{SETTINGS_FILE}` has the labels, what is done to a picture, the versions"
        " of the packages that were used, and how the answers compared with those of the packed model.",
    ]
    if settings["image"] is not None:
        lines += [
            "",
            "```bash",
            f"pip install numpy pillow {runtime}  # {settings['versions'][runtime]} when it was exported",
            f"python {RUN_FILE} picture.png",
            "```",
            "",
            "Resizing is Pillow's. Image processors that resize with torchvision differ from it by a grey level here"
            " and there.",
        ]
    else:
        lines += [
            "",
            "It was exported without an image processor, so nothing here says how a picture becomes its input.",
        ]
    if "compile" in settings:
        hints = ", ".join(f"`{name}` = `{value}`" for name, value in settings["compile"].items())
        lines += [
            "",
            f"Compile it with {hints}: what is not quantized then stays float32, and the answers stay those of the"
            " packed model.",
        ]
    return "\n".join(lines) + "\n"
