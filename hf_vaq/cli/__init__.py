"""The command `hf-vaq`: one module a command, each with its parser and its `run`; heavy imports wait until then."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..version import __version__
from . import analyze, benchmark, evaluate, export, label, pack, push, recipes, train

COMMANDS = {
    "train": train,
    "label": label,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "analyze": analyze,
    "pack": pack,
    "export": export,
    "push": push,
    "recipes": recipes,
}
_TAKE_FIELDS = ("train", "label")
"""Commands that a recipe's fields may follow."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="hf-vaq",
        description="Train, analyze, pack and evaluate low-bit Vision Transformers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-vaq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.HELP, allow_abbrev=False, add_help=name not in _TAKE_FIELDS
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        command.set_defaults(run=module.run, parser=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 1 for bad input (2 where the command line itself is wrong)."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments, rest = build_parser().parse_known_args(words)
    if rest and arguments.command not in _TAKE_FIELDS:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and words.index(rest[0]) < words.index(arguments.recipe):
        # Of `--field value RECIPE` argparse would take the value for the recipe.
        arguments.parser.error(f"the recipe comes before its fields: hf-vaq {arguments.command} RECIPE --field value")
    arguments.overrides = rest
    arguments.words = words
    try:
        # Bars for reading and writing files would bury those of training and evaluation.
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug or not _is_expected(error):
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"hf-vaq {arguments.command}{where}: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _is_expected(error: Exception) -> bool:
    """Tell an error about input, whose message says all, from a fault of the program, whose traceback is needed."""
    from ..nn import UncalibratedError
    from ..training import NonFiniteError

    return isinstance(error, (ValueError, OSError, UncalibratedError, NonFiniteError))


def _one_line(error: Exception) -> str:
    """Return the message in one line; of an error in a data-loading process, its last line is the message."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
