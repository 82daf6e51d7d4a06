"""`hf-vaq analyze {sensitivity,variation,oscillation}`: look into a model or a training run, and leave a report."""

from __future__ import annotations

import argparse

from . import oscillation, sensitivity, variation

HELP = "Analyze sensitivity to quantization, variation, or oscillation, and write a report."
ANALYSES = {"sensitivity": sensitivity, "variation": variation, "oscillation": oscillation}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the analyses, each with its own arguments."""
    analyses = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    for name, module in ANALYSES.items():
        command = analyses.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(command)
        # Not set here unless given, so that one before the name of the analysis counts too.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the whole traceback of an error"
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen analysis."""
    return ANALYSES[arguments.analysis].run(arguments)
