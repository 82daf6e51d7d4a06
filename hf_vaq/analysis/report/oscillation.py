"""The report of an oscillation analysis."""

from __future__ import annotations

from collections.abc import Mapping

from ...training.oscillation_record import TRAJECTORY_WINDOW
from ..figures import oscillation as figures
from ..oscillation import NEAR, OscillationResult
from .page import FigureBlock, Report, TableBlock

_DECIMALS = {"percentage": 2, "largest_percentage": 2, "near_threshold": 2, "near_threshold_before": 2}


def oscillation_report(result: OscillationResult, facts: Mapping[str, str], command: str) -> Report:
    """Bind the records of runs into a page.

    Args:
        result: the records.
        facts: what was done, for the head of the page.
        command: the command that made it.
    """
    threshold = next(iter(result.runs.values()))["threshold"]
    shares = FigureBlock(
        "shares",
        lambda theme: figures.draw_shares(result, theme),
        f"Share of weights that oscillate: those whose code turned back, on average, in more than {threshold:g} of the"
        " last steps. Only modules with the fewest bits; left all of them together, then one line a module. It rises"
        " as weights settle around thresholds, and falls where the learning rate does.",
        "Oscillation percentage over steps, of each run and of each of its modules.",
    )
    distances = FigureBlock(
        "distances",
        lambda theme: figures.draw_distances(result, theme),
        "Where latent weights lie at the end, bin by bin: how far from the nearest threshold between codes, in units"
        " of the scale. Weights that oscillate gather at the left edge; a regularizer that works moves them to the"
        " right, to the middle of their bin. Weights of the outer bins may lie beyond half a scale.",
        "Histograms of the distance to the nearest threshold, by code and run.",
    )
    trajectories = FigureBlock(
        "trajectories",
        lambda theme: figures.draw_trajectories(result, theme),
        f"The recorded weights that changed their code most often in the {TRAJECTORY_WINDOW} steps after half of the"
        " training, in units of their scale: above, how far from the threshold that each one crosses; below, the same"
        " weights over the whole run. Dotted lines are thresholds. A weight that goes back and forth over one of them"
        " oscillates.",
        "Latent weights over steps, with the thresholds between codes.",
    )
    scales = FigureBlock(
        "scales",
        lambda theme: figures.draw_scales(result, theme),
        "Scale of every module over steps, over its first value. Scales move the thresholds, too: while they do, all"
        " weights of the module drift towards or away from a threshold together.",
        "Scales over steps by module.",
    )
    table = TableBlock(
        result.summary(),
        f"Module by module: percentage that oscillates at the end, and the largest ever; percentage within {NEAR:g}"
        " scales of a threshold at the end, and before; last over first scale. At 8 bits a step of the optimizer often"
        " spans several codes, so that nearly every weight counts as oscillating and it means little.",
        _DECIMALS,
    )
    sections = [
        ("Oscillation over steps", [shares]),
        ("Distance to thresholds", [distances]),
        ("Single weights", [trajectories]),
        ("Scales", [scales]),
        ("All modules", [table]),
    ]
    return Report(f"Oscillation: {', '.join(result.runs)}", _summary(result), facts, command, sections)


def _summary(result: OscillationResult) -> str:
    totals = result.totals(lowest_bits=True)
    parts = []
    for run, rows in totals.groupby("run", sort=False):
        weight = result.runs[run]["bin_regularization"]
        parts.append(
            f"{run} (regularizer {weight:g}): {rows['percentage'].iloc[-1]:.2f} % at the end, at most"
            f" {rows['percentage'].max():.2f} %"
        )
    return "Weights that oscillate, in the modules with the fewest bits. " + "; ".join(parts) + "."
