"""Draw size and accuracy of what the benchmarks measured: the picture of the README, from the committed results.

    python benchmarks/overview.py

reads `results/digits.json` and `results/imagenette.json`, and writes `docs/figures/size_and_accuracy.svg`. Nothing is
measured here. There is no peer: full precision, side by side with it, is what a packed model is compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure
from reporting import RESULTS

from hf_vaq.analysis.figures.style import LIGHT, Theme, styled

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "size_and_accuracy.svg"
MB = 1e6


class Bar(NamedTuple):
    """A model: its name, the bytes of its weights, its top-1 in per cent (of several seeds, each)."""

    name: str
    size: int
    top1: list[float]
    packed: bool


def read_results() -> dict[str, list[Bar]]:
    """Bars by group, from the committed results."""
    digits = [run["variation-aware"] for run in _measured("digits")]
    imagenette = {run["recipe"].rpartition("_")[2].upper(): run for run in _measured("imagenette")}
    photographs = [Bar("full precision", *_size_and_top1([imagenette["W8A8"]], "full_precision"), packed=False)]
    photographs += [
        Bar(name, *_size_and_top1([imagenette[bits]], "quantized"), packed=True)
        for bits, name in (("W8A8", "W8A8, calibrated only"), ("W4A4", "W4A4, three epochs"))
    ]
    small = [
        Bar("full precision", *_size_and_top1(digits, "full_precision"), packed=False),
        Bar("W2A2", *_size_and_top1(digits, "quantized"), packed=True),
    ]
    return {
        "ImageNet-1k ViT-Tiny, on photographs of ten classes": photographs,
        "small ViT, digits, three seeds": small,
    }


def draw(groups: dict[str, list[Bar]], theme: Theme = LIGHT) -> Figure:
    """Size of the weights (left) and top-1 (right), a row of both for each group."""
    heights = [len(bars) for bars in groups.values()]
    figure = Figure(figsize=(9.0, 0.55 * sum(heights) + 1.3), layout="constrained")
    rows = figure.subplots(len(groups), 2, gridspec_kw={"height_ratios": heights}, squeeze=False)
    for (title, bars), (size_axes, top1_axes) in zip(groups.items(), rows, strict=True):
        names = [bar.name for bar in bars]
        colors = [theme.series[0] if bar.packed else theme.text for bar in bars]
        largest = bars[0].size
        _bars(size_axes, names, [bar.size / MB for bar in bars], colors, [_size_label(bar, largest) for bar in bars])
        top1 = [sum(bar.top1) / len(bar.top1) for bar in bars]
        labels = [", ".join(f"{value:.2f}" for value in bar.top1) for bar in bars]
        _bars(top1_axes, names, top1, colors, labels)
        top1_axes.set_yticklabels([])
        top1_axes.set(xlim=(0, 160), xticks=range(0, 101, 20))
        size_axes.set_title(title, loc="left")
    rows[-1][0].set_xlabel("weights on disk, MB")
    rows[-1][1].set_xlabel("top-1, %")
    return figure


def main() -> None:
    """Write the figure."""
    # Text stays text, and nothing in the file depends on when it was drawn.
    with styled(LIGHT), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf_vaq"}):
        figure = draw(read_results())
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, format="svg", metadata={"Date": None})
    print(FIGURE.relative_to(FIGURE.parents[2]))


def _measured(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["measured"]


def _size_and_top1(runs: list[dict], form: str) -> tuple[int, list[float]]:
    return runs[0][form]["size_bytes"], [run[form]["top1"] for run in runs]


def _size_label(bar: Bar, largest: int) -> str:
    size = f"{bar.size / MB:.2f} MB"
    return f"{size}, 1 / {largest / bar.size:.1f}" if bar.packed else size


def _bars(axes, names: list[str], values: list[float], colors: list[str], labels: list[str]) -> None:
    axes.barh(names, values, color=colors, height=0.6)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.45 * max(values))
    for row, (value, label) in enumerate(zip(values, labels, strict=True)):
        axes.annotate(label, (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)


if __name__ == "__main__":
    main()
