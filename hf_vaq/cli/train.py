"""`hf-vaq train RECIPE [--field value ...]`: the main job of a recipe."""

from __future__ import annotations

import argparse
import sys

HELP = "Run a recipe: quantize, train, pack, evaluate."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe; `hf_vaq.recipe` reads its fields, because there are many and importing them is slow."""
    parser.usage = "hf-vaq train RECIPE [--field value ...] [--debug]"
    parser.add_argument("recipe", metavar="RECIPE", help="path of a recipe, or a name that 'hf-vaq recipes' lists")
    parser.add_argument("-h", "--help", action=RecipeHelp, help="show this help with all fields, and exit")


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


class RecipeHelp(argparse.Action):
    """Print the help of the command and of every field of a recipe."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        """Print and exit, as argparse asks for."""
        from ..recipe.fields import describe_fields

        print(f"{parser.format_help()}\n{describe_fields()}")
        parser.exit()
