"""Figures of the variation analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..variation import CNN, VariationResult
from .style import Theme, line_style, logarithmic, new_figure, one_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "relative_sdam": "SDAM over mean magnitude",
    "kurtosis": "kurtosis",
    "max_over_std": "largest over standard deviation",
}


def draw_modules(result: VariationResult, theme: Theme, tensor: str) -> Figure:
    """Every module of every model as a point, with the median: relative SDAM, kurtosis, largest over std."""
    table = result.table()
    table = table[table["tensor"] == tensor]
    models = list(dict.fromkeys(table["model"]))
    figure, axes = new_figure(1.5 + 0.42 * len(models), 1, 3, sharey=True)
    for axis, (column, label) in zip(axes[0], MEASURES.items(), strict=True):
        for position, model in enumerate(models):
            rows = table[table["model"] == model]
            # Spread by order and not at random, so that the same result gives the same picture.
            jitter = [0.26 * ((index * 0.618) % 1 - 0.5) * 2 for index in range(len(rows))]
            style = _style(theme, rows["architecture"].iloc[0])
            heights = [position + value for value in jitter]
            axis.plot(rows[column], heights, linestyle="none", alpha=0.6, markersize=3.5, **style)
            median = rows[column].median()
            axis.plot([median, median], [position - 0.38, position + 0.38], color=theme.text, linewidth=2.2)
        axis.set_xlabel(label)
        if column != "relative_sdam":
            logarithmic(axis, "x")
    axes[0][0].set_yticks(range(len(models)), [_wrapped(model) for model in models])
    axes[0][0].invert_yaxis()
    return figure


def draw_depth(result: VariationResult, theme: Theme, tensor: str) -> Figure:
    """Mean magnitude (over that of the whole model) and relative SDAM along the depth of every model."""
    table = result.table()
    table = table[table["tensor"] == tensor]
    figure, axes = new_figure(3.4, 1, 2)
    for index, (model, rows) in enumerate(table.groupby("model", sort=False)):
        style = line_style(theme, index) | {"markersize": 3, "linewidth": 1.0}
        axes[0][0].plot(rows["depth"], rows["mean_abs"] / rows["mean_abs"].mean(), label=model, **style)
        axes[0][1].plot(rows["depth"], rows["relative_sdam"], label=model, **style)
    logarithmic(axes[0][0], "y")
    axes[0][0].set_ylabel("mean magnitude over the model's mean")
    axes[0][1].set_ylabel("SDAM over mean magnitude")
    for axis in axes[0]:
        axis.set_xlabel("depth: first layer 0, last layer 1")
    one_legend(figure, axes[0][0], columns=3)
    return figure


def draw_heads(result: VariationResult, theme: Theme, tensor: str) -> Figure:
    """Spread between the heads of each attention module, by kind of projection."""
    table = result.table()
    table = table[(table["tensor"] == tensor) & table["head_spread"].notna()]
    kinds = list(dict.fromkeys(table["kind"]))
    figure, axes = new_figure(3.0)
    axis = axes[0][0]
    models = list(dict.fromkeys(table["model"]))
    for index, model in enumerate(models):
        rows = table[table["model"] == model]
        offset = 0.7 * ((index + 0.5) / len(models) - 0.5)
        positions = [kinds.index(kind) + offset for kind in rows["kind"]]
        style = line_style(theme, index) | {"linestyle": "none", "alpha": 0.75}
        axis.plot(positions, 100 * rows["head_spread"].astype(float), label=model, **style)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_ylabel("spread between heads (%)")
    one_legend(figure, axis, columns=3)
    return figure


def _style(theme: Theme, architecture: str) -> dict[str, str]:
    convolutional = architecture == CNN
    return {"color": theme.color(1 if convolutional else 0), "marker": "D" if convolutional else "o"}


def _wrapped(name: str, width: int = 18) -> str:
    """Break a long name after an underscore, hyphen or slash."""
    lines = [""]
    for character in name:
        lines[-1] += character
        if len(lines[-1]) >= width and character in "_-/":
            lines.append("")
    return "\n".join(line for line in lines if line)
