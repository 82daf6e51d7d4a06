"""`hf-vaq train RECIPE [--field value ...]`: the main job of a recipe."""

from __future__ import annotations

import argparse
import sys

from .shared_arguments import add_recipe

HELP = "Run a recipe: quantize, train, pack, evaluate."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe."""
    add_recipe(parser, "train")


def run(arguments: argparse.Namespace) -> int:
    """Run the recipe and print its table."""
    from ..recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from accelerate import PartialState

    from ..job import run_recipe

    result = run_recipe(recipe, report=lambda message: print(f"hf-vaq: {message}", file=sys.stderr, flush=True))
    if PartialState().is_main_process:
        print(f"\n{result.table()}\nWritten to {recipe.training.output_dir}: packed/, trained/, results.json")
    return 0
