"""`hf-vaq analyze oscillation RUN [RUN ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import add_common_arguments, command_of, finish, versions

HELP = "Show which weights oscillated in training runs, where they lie, and how scales moved."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="output folders of training runs, to be shown side by side"
    )
    add_common_arguments(parser, "outputs/analysis/oscillation/<first run>")


def run(arguments: argparse.Namespace) -> int:
    """Read the records, and write the folder."""
    from ...analysis import analyze_oscillation
    from ...analysis.extra import load_extra
    from ...analysis.report.oscillation import oscillation_report
    from ...analysis.report.writing import claim_folder

    load_extra("matplotlib")
    result = analyze_oscillation(arguments.runs)
    folder = arguments.output or Path("outputs/analysis/oscillation") / next(iter(result.runs)).replace("/", "_")
    claim_folder(folder)
    facts = {"Runs": ", ".join(map(str, arguments.runs))}
    for name, metadata in result.runs.items():
        facts[name] = (
            f"{metadata['steps']} steps, regularizer {metadata['bin_regularization']:g}, momentum"
            f" {metadata['momentum']:g}, threshold {metadata['threshold']:g}"
        )
    facts["Versions"] = ", ".join(f"{key} {value}" for key, value in versions().items())
    summary = result.summary()
    results = {
        "analysis": "oscillation",
        "command": command_of(arguments),
        "runs": result.runs,
        "totals": result.totals(lowest_bits=True).groupby("run", sort=False).tail(1).to_dict("records"),
        "summary": summary.to_dict("records"),
        "versions": versions(),
    }
    tables = {
        "modules": summary,
        "shares": result.shares,
        "scales": result.scales,
        "distances": result.distances,
        "trajectories": result.trajectories,
    }
    finish(folder, oscillation_report(result, facts, command_of(arguments)), results, tables)
    return 0
