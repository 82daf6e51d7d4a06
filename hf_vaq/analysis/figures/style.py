"""One style for all figures: colours that colour-blind readers can tell apart, and room for every label."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..extra import load_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches; the reports show it 900 pixels wide."""
DPI = 150
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        name: "light" or "dark".
        background: of figure and axes.
        text: of labels, ticks and axes.
        grid: of the grid.
        series: one a series; after Okabe and Ito (2008), who chose them for all common forms of colour blindness.
        heat: name of the colour map of heat maps; it grows in lightness, so it is legible without colour too.
    """

    name: str
    background: str
    text: str
    grid: str
    series: tuple[str, ...]
    heat: str = "cividis"

    def color(self, index: int) -> str:
        """Colour of a series; they repeat after the last."""
        return self.series[index % len(self.series)]


LIGHT = Theme(
    "light", "#ffffff", "#1f2328", "#d8dde3", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A6D00")
)
DARK = Theme(
    "dark", "#16191d", "#e6e9ed", "#3a4048", ("#56B4E9", "#E69F00", "#2BC48A", "#E39AC4", "#F0E442", "#FF8A4C")
)

Draw = Callable[[Theme], "Figure"]


def render(draw: Draw, theme: Theme) -> bytes:
    """Draw a figure in a theme; a PNG file."""
    buffer = io.BytesIO()
    with styled(theme):
        draw(theme).savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def styled(theme: Theme) -> AbstractContextManager[None]:
    """The style as a context in which figures are made."""
    matplotlib = load_extra("matplotlib")
    return matplotlib.rc_context(
        {
            "figure.facecolor": theme.background,
            "savefig.facecolor": theme.background,
            "axes.facecolor": theme.background,
            "axes.edgecolor": theme.text,
            "axes.labelcolor": theme.text,
            "axes.titlecolor": theme.text,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.labelsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": theme.grid,
            "grid.linewidth": 0.6,
            "text.color": theme.text,
            "xtick.color": theme.text,
            "ytick.color": theme.text,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "font.family": "DejaVu Sans",
            "text.parse_math": False,  # names of models and folders may hold $ and backslashes
            "image.cmap": theme.heat,
        }
    )


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure `WIDTH` inches wide, without any global state, and its axes as `subplots` returns them."""
    figure_module = load_extra("matplotlib.figure")
    figure = figure_module.Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def one_legend(figure: Figure, axes: Any, columns: int = 4) -> None:
    """Put the legend of `axes` above the whole figure."""
    # Not get_legend_handles_labels: it leaves out names that begin with an underscore, as names of models may.
    handles = [line for line in (*axes.get_lines(), *axes.containers) if not _is_automatic(str(line.get_label()))]
    texts = [str(handle.get_label()) for handle in handles]
    legend = figure.legend(handles, ["-"] * len(handles), loc="outside upper left", ncols=columns)
    for shown, text in zip(legend.get_texts(), texts, strict=True):
        shown.set_text(text)


def _is_automatic(label: str) -> bool:
    """Whether matplotlib made up the label of a line that was given none."""
    return label == "_nolegend_" or re.fullmatch(r"_(child|container)\d+", label) is not None


def line_style(theme: Theme, index: int) -> dict[str, Any]:
    """Colour, marker and line of a series: three ways to tell it from the others."""
    return {
        "color": theme.color(index),
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def logarithmic(axis: Any, which: str) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers at few places."""
    ticker = load_extra("matplotlib.ticker")
    getattr(axis, f"set_{which}scale")("log")
    side = getattr(axis, f"{which}axis")
    low, high = side.get_data_interval()
    subs = (1, 2, 5) if 0 < high < 1000 * low else (1,)
    side.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
    side.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_locator(ticker.NullLocator())


def readable(names: Sequence[str]) -> list[str]:
    """Names for tick labels: underscores become spaces."""
    return [name.replace("_", " ") for name in names]
