"""Arguments that several commands declare alike."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any


class RecipeHelp(argparse.Action):
    """Print the help of the command and of every field of a recipe."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        """Print and exit, as argparse asks for."""
        from ..recipe.fields import describe_fields

        print(f"{parser.format_help()}\n{describe_fields()}")
        parser.exit()


def add_recipe(parser: argparse.ArgumentParser, command: str) -> None:
    """Declare the recipe; `hf_vaq.recipe` reads its fields, because there are many and importing them is slow."""
    parser.usage = f"hf-vaq {command} RECIPE [--field value ...] [--debug]"
    parser.add_argument("recipe", metavar="RECIPE", help="path of a recipe, or a name that 'hf-vaq recipes' lists")
    parser.add_argument("-h", "--help", action=RecipeHelp, help="show this help with all fields, and exit")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare the file for the result."""
    parser.add_argument("--output", type=Path, help="JSON file to write the result to")


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse a file that cannot be one, before any work.

    Raises:
        ValueError: it is a folder.
    """
    if arguments.output is not None and arguments.output.is_dir():
        raise ValueError(f"output is {str(arguments.output)!r}, which is a folder; accepted: a file to write.")


def write_output(arguments: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write the result, and the command that made it, if a file is wanted."""
    from ..job.output import write_json

    if arguments.output is not None:
        write_json(arguments.output, {"command": shlex.join(["hf-vaq", *arguments.words]), **content})


def add_dataset(parser: argparse.ArgumentParser, *, required: bool, purpose: str) -> None:
    """Declare which images are used; `purpose` is the verb of the split: "evaluate", "measure"."""
    parser.add_argument(
        "--dataset", required=required, help="'digits' (bundled), a local folder or .parquet file, or a Hub id"
    )
    parser.add_argument("--dataset_config", "--dataset-config", help="configuration of the data set")
    parser.add_argument("--split", help=f"split to {purpose} on (default: validation, valid, val or test)")
    parser.add_argument(
        "--image_column", "--image-column", default="image", help="column with the images (default: image)"
    )
    parser.add_argument(
        "--label_column", "--label-column", default="label", help="column with the labels (default: label)"
    )
