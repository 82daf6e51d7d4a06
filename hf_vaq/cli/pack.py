"""`hf-vaq pack CHECKPOINT OUT`: from a training checkpoint to a packed model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "Turn a training checkpoint into a packed model: integer codes and scales."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a quantized model in training form")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")


def run(arguments: argparse.Namespace) -> int:
    """Pack; the folder appears whole or not at all."""
    from .. import pack
    from ..hub import CardOptions, complete_model_folder
    from ..job.models import load_image_processor, load_model
    from ..job.output import new_folder, weights_size

    with new_folder(arguments.out) as partial:
        model = load_model(arguments.checkpoint)
        pack(model).save_pretrained(partial)
        if (Path(arguments.checkpoint) / "preprocessor_config.json").is_file():
            load_image_processor(arguments.checkpoint).save_pretrained(partial)
        else:
            print(
                f"{arguments.checkpoint} has no image processor (preprocessor_config.json), so pipelines will not "
                f"load {arguments.out} without one.",
                file=sys.stderr,
            )
        name = arguments.out.resolve().name
        complete_model_folder(partial, CardOptions(name=name, where=name))
    print(f"{arguments.out}: {weights_size(arguments.out) / 1000:,.1f} kB of packed weights")
    return 0
