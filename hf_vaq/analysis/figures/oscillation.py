"""Figures of the oscillation analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...numerics.levels import integer_range
from ...training.oscillation_record import DISTANCE_INTERVALS, TRAJECTORY_WINDOW
from ..oscillation import OscillationResult
from .style import LINES, Theme, line_style, new_figure, one_legend

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

TRAJECTORIES = 6
"""Weights shown of every run."""


def draw_shares(result: OscillationResult, theme: Theme) -> Figure:
    """Oscillation percentage over steps: of all weights at the lowest bits, and of every module."""
    figure, axes = new_figure(3.4, 1, 1 + len(result.runs), sharex=True, sharey=True)
    shares, totals = result.lowest_bits(result.shares), result.totals(lowest_bits=True)
    for index, (run, rows) in enumerate(shares.groupby("run", sort=False)):
        total = totals[totals["run"] == run]
        style = line_style(theme, index) | {"marker": ""}
        axes[0][0].plot(total["step"], total["percentage"], label=run, **style)
        axis = axes[0][1 + index]
        for _, module in rows.groupby("module", sort=False):
            axis.plot(module["step"], module["percentage"], color=theme.color(index), alpha=0.4, linewidth=0.8)
        axis.set_title(run)
        axis.set_xlabel("step")
    axes[0][0].set_title("all modules")
    axes[0][0].set_xlabel("step")
    axes[0][0].set_ylabel("weights that oscillate (%)")
    one_legend(figure, axes[0][0])
    return figure


def draw_distances(result: OscillationResult, theme: Theme) -> Figure:
    """Distance of latent weights to the nearest threshold, bin by bin, at the end of training."""
    runs = list(result.runs)
    figure, axes = new_figure(3.2, 1, len(runs), sharey=True)
    for axis, run in zip(axes[0], runs, strict=True):
        rows = result.histogram(run)
        rows = rows[rows["bits"] == rows["bits"].min()]
        for index, (code, part) in enumerate(rows.groupby("code")):
            inner = part[part["distance"] < 0.5]
            beyond = part["percentage"][part["distance"] > 0.5].sum()
            label = f"code {code}" + (f" ({beyond:.1f} % beyond)" if beyond else "")
            style = line_style(theme, index) | {"marker": ""}
            axis.plot(inner["distance"], inner["percentage"], label=label, drawstyle="steps-mid", **style)
        axis.set_title(run)
        axis.set_xlabel("distance to the nearest threshold (scales)")
        axis.set_xlim(0, 0.5)
        axis.set_ylim(0, 1.5 * rows["percentage"][rows["distance"] < 0.5].max())  # room for the legend
        if len(rows["code"].unique()) <= 8:
            axis.legend()
    axes[0][0].set_ylabel(f"weights (%), intervals of 1/{2 * DISTANCE_INTERVALS}")
    return figure


def draw_scales(result: OscillationResult, theme: Theme) -> Figure:
    """Mean scale of every module over steps, over its first value."""
    runs = list(result.runs)
    figure, axes = new_figure(3.0, 1, len(runs), sharey=True)
    for axis, run in zip(axes[0], runs, strict=True):
        rows = result.scales[result.scales["run"] == run]
        labelled = set()
        for module, part in rows.groupby("module", sort=False):
            kind = _KINDS.get(module.rpartition(".")[2], "first, last and other")
            index = sorted({*_KINDS.values(), "first, last and other"}).index(kind)
            axis.plot(
                part["step"],
                part["mean"] / part["mean"].iloc[0],
                color=theme.color(index),
                linestyle=LINES[index % len(LINES)],
                linewidth=1.0,
                label=None if kind in labelled else kind,
            )
            labelled.add(kind)
        axis.set_title(run)
        axis.set_xlabel("step")
    axes[0][0].set_ylabel("scale over its first value")
    one_legend(figure, axes[0][0], columns=6)
    return figure


def draw_trajectories(result: OscillationResult, theme: Theme) -> Figure:
    """The recorded weights that change their code most often, in units of their scale.

    Above the steps after half of the training, which are recorded one by one, less the threshold that each weight
    crosses; below the whole run.
    """
    runs = list(result.runs)
    figure, axes = new_figure(5.4, 2, len(runs), sharey="row")
    for column, run in enumerate(runs):
        rows = result.lowest_bits(result.trajectories[result.trajectories["run"] == run])
        qn, qp = integer_range(min(m["bits"] for m in result.runs[run]["modules"].values()))
        half = result.runs[run]["steps"] // 2
        window = rows[(rows["step"] > half) & (rows["step"] <= half + TRAJECTORY_WINDOW)]
        thresholds = [code + 0.5 for code in range(qn, qp)]
        above, below = axes[0][column], axes[1][column]
        for index, (module, weight) in enumerate(_busiest(window, qn, qp)):
            near, whole = (part[(part["module"] == module) & (part["weight"] == weight)] for part in (window, rows))
            middle = near["position"].median()
            crossed = min(thresholds, key=lambda threshold: abs(threshold - middle))
            above.plot(near["step"], near["position"] - crossed, color=theme.color(index), linewidth=0.9)
            below.plot(whole["step"], whole["position"], color=theme.color(index), linewidth=0.9)
        for axis, lines in ((above, [0.0]), (below, thresholds)):
            for line in lines:
                axis.axhline(line, color=theme.text, linestyle=":", linewidth=1.0)
        below.set_ylim(qn - 0.6, qp + 0.6)
        above.set_title(run)
        below.set_xlabel("step")
    axes[0][0].set_ylabel("distance to the threshold")
    axes[1][0].set_ylabel("latent weight over scale")
    return figure


_KINDS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention output",
    **dict.fromkeys(("fc1", "fc2", "gate_proj", "up_proj", "down_proj"), "ffn"),
}


def _busiest(rows: pandas.DataFrame, qn: int, qp: int) -> list[tuple[str, int]]:
    """Module and index of the weights with most changes of code."""
    changes = {}
    for key, part in rows.groupby(["module", "weight"], sort=False):
        codes = part.sort_values("step")["position"].clip(qn, qp).round()
        changes[key] = int((codes.diff().fillna(0) != 0).sum())
    return sorted(changes, key=lambda key: -changes[key])[:TRAJECTORIES]
