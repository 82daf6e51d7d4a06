"""`hf-vaq recipes`: list the shipped recipes, or copy one to change it."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "List the shipped recipes, or copy one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--copy",
        nargs=2,
        metavar=("NAME", "DEST"),
        help="copy the recipe NAME to the new file DEST, to change it there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print name and first comment line of each recipe, or copy one."""
    from ..recipe.shipped import find_recipe, shipped_recipes, summary

    if arguments.copy:
        from ..job.output import write_text

        name, destination = arguments.copy[0], Path(arguments.copy[1])
        source = find_recipe(name)
        if destination.is_dir():
            destination = destination / source.name
        if destination.exists():
            raise ValueError(f"{str(destination)!r} exists already; accepted: a new file.")
        write_text(destination, source.read_text(encoding="utf-8"))
        print(destination)
        return 0
    recipes = shipped_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        print(f"{name.ljust(width)}  {summary(path)}")
    return 0
