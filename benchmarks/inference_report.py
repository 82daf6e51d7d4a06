"""Draw what `benchmarks/inference.py` measured, and put its tables into docs/inference_speed.md.

    python benchmarks/inference_report.py

reads `results/inference.json`, writes `docs/figures/inference_speed.svg`, and replaces what stands between the marks
of the page. Nothing is measured here.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure
from reporting import RESULTS, markdown_table, write_section

from hf_vaq.analysis.figures.style import LIGHT, Theme, styled

DOCS = Path(__file__).parents[1] / "docs"
FIGURE = DOCS / "figures" / "inference_speed.svg"
PAGE = DOCS / "inference_speed.md"
BEGIN, END = "<!-- tables of benchmarks/inference_report.py: begin -->", "<!-- end -->"
NAMES = {"deit_tiny": "DeiT-Tiny", "swin_tiny": "Swin-Tiny"}


def main() -> None:
    """Write the figure and the tables."""
    measured = json.loads((RESULTS / "inference.json").read_text())["measured"]["models"]
    # Text stays text, and nothing in the file depends on when it was drawn.
    with styled(LIGHT), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf_vaq"}):
        FIGURE.parent.mkdir(exist_ok=True)
        draw(measured).savefig(FIGURE, format="svg", metadata={"Date": None})
    write_section(PAGE, BEGIN, END, tables(measured))
    print(f"{FIGURE.relative_to(DOCS.parent)}\n{PAGE.relative_to(DOCS.parent)}")


def draw(measured: dict, theme: Theme = LIGHT) -> Figure:
    """Speed-up over float32 eager of every contestant: a column a model, a row a batch size."""
    sizes = sorted({size for model in measured.values() for size in model.get("timing", {})}, key=int)
    count = max(len(part["contestants"]) for model in measured.values() for part in model["timing"].values())
    figure = Figure(figsize=(5.6 * len(measured), (0.24 * count + 0.7) * len(sizes)), layout="constrained")
    axes = figure.subplots(len(sizes), len(measured), squeeze=False)
    for column, (name, model) in enumerate(measured.items()):
        for row, size in enumerate(sizes):
            part = model.get("timing", {}).get(size)
            if part is None:
                axes[row][column].set_visible(False)
                continue
            _bars(axes[row][column], part["contestants"], theme)
            axes[row][column].set_title(f"{NAMES.get(name, name)}, batch {size}", loc="left")
    for bottom in axes[-1]:
        bottom.set_xlabel("times as fast as float32 eager")
    return figure


def _bars(axes, contestants: dict[str, dict], theme: Theme) -> None:
    ordered = sorted(contestants.items(), key=lambda item: -item[1]["ratio"][1])
    names, ratios = [name for name, _ in ordered], [row["ratio"] for _, row in ordered]
    colors = [theme.series[0] if name.startswith("hf_vaq") else theme.text for name in names]
    medians = [ratio[1] for ratio in ratios]
    spread = [[ratio[1] - ratio[0] for ratio in ratios], [ratio[2] - ratio[1] for ratio in ratios]]
    axes.barh(names, medians, xerr=spread, color=colors, height=0.65, error_kw={"linewidth": 0.8})
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(0, 1.15 * max(ratio[2] for ratio in ratios))
    for row, (_, median, high) in enumerate(ratios):
        axes.annotate(f"{median:.2f}", (high, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)


def tables(measured: dict) -> str:
    """Every table of the page, as Markdown."""
    parts = []
    for name, model in measured.items():
        title = NAMES.get(name, name)
        if "timing" in model:
            parts.append(f"### {title}: speed\n\n{_timing(model['timing'])}")
        if "memory" in model:
            parts.append(f"### {title}: size and memory\n\n{_memory(model['memory']['forms'])}")
        if "profile" in model:
            parts.append(f"### {title}: where the time goes\n\n{_profile(model['profile'])}")
    return "\n\n".join(parts)


def _timing(timing: dict) -> str:
    sizes = sorted(timing, key=int)
    first = timing[sizes[-1]]["contestants"]
    rows = [["", *(f"batch {size}: {what}" for size in sizes for what in ("ms", "x float32 eager")), "MB"]]
    for name in sorted(first, key=lambda name: -first[name]["ratio"][1]):
        cells = []
        for size in sizes:
            row = timing[size]["contestants"].get(name)
            if row is None:
                cells += ["", ""]
                continue
            low, median, high = row["ratio"]
            cells += [f"{row['milliseconds'][1]:.1f}", f"{median:.2f} ({low:.2f} to {high:.2f})"]
        size_bytes = first[name]["size_bytes"]
        rows.append([name, *cells, "" if size_bytes is None else f"{size_bytes / 1e6:.2f}"])
    lines = [markdown_table(rows), ""]
    for size in sizes:
        part = timing[size]
        others = "unknown" if part["foreign_cores"] is None else f"{part['foreign_cores']:.2f} cores"
        lines.append(
            f"Batch {size}: {part['rounds']} rounds, {part['rejected_rounds']} thrown away, load of others {others}."
        )
        lines += [f"Cannot run: {name} ({reason})." for name, reason in part["cannot_run"].items()]
    return "\n".join(lines)


def _memory(memory: dict) -> str:
    form = next(iter(memory.values()))
    sizes = sorted(form["memory"]["running"], key=int) if form["memory"] else []
    rows = [
        ["", "MB on disk", "of float32", "peak while loading, MB", *(f"peak at batch {size}, MB" for size in sizes)]
    ]
    for name, row in memory.items():
        use = row["memory"]
        peaks = (
            [f"{use['loading'] / 1e6:.1f}", *(f"{use['running'][size] / 1e6:.1f}" for size in sizes)] if use else []
        )
        rows.append([name, f"{row['size_bytes'] / 1e6:.2f}", f"1 / {row['float_size_over_own']:.1f}", *peaks])
    return markdown_table(rows)


def _profile(profile: dict) -> str:
    runs = [(size, form) for size in sorted(profile, key=int) for form in ("compiled", "eager")]
    columns = [profile[size][form] for size, form in runs]
    kinds = list(dict.fromkeys(kind for column in columns for kind in column["shares"]))
    rows = [["share of the time", *(f"batch {size}, {form}" for size, form in runs)]]
    rows += [[kind, *(f"{100 * column['shares'].get(kind, 0):.1f} %" for column in columns)] for kind in kinds]
    limits = {
        "as_it_is": "x float32 eager, as it is",
        "linear_layers_free": "if the Linear layers cost nothing",
        "all_but_linear_layers_free": "if everything else cost nothing",
    }
    for key, label in limits.items():
        values = [column["limits"][key] for column in columns]
        rows.append([label, *("" if value is None else f"{value:.2f}" for value in values)])
    floor = ", ".join(
        f"{profile[size]['memory_floor_ms']:.2f} ms at batch {size}" for size in sorted(profile, key=int)
    )
    return f"{markdown_table(rows)}\n\nMoving weights, inputs and outputs of the packed layers once takes {floor}."


if __name__ == "__main__":
    main()
