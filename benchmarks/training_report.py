"""The tables of docs/training_speed.md from results/training_step_*.json, one file a kind of processor.

python benchmarks/training_report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reporting import RESULTS, markdown_table, write_section

PAGE = Path(__file__).parents[1] / "docs" / "training_speed.md"
BEGIN, END = "<!-- tables of benchmarks/training_report.py: begin -->", "<!-- end -->"
MACHINES = {
    "training_step_intel": "Two cores of an Intel Xeon (Emerald Rapids)",
    "training_step_amd": "Two cores of an AMD EPYC (Zen 5), before native quantizers and mended products",
}
"""Results by their name, and what they are of."""
MODELS = {"deit-t": "DeiT-T, batch 16", "swin-t": "Swin-T, batch 4"}


def main() -> None:
    """Write the tables."""
    parts = []
    for name, title in MACHINES.items():
        found = json.loads((RESULTS / f"{name}.json").read_text())
        measured, packages = found["measured"], found["machine"]["packages"]
        parts.append(f"### {title}\n\ntorch {packages['torch']}, transformers {packages['transformers']}.")
        parts += [step_table(measured, model, title) for model, title in MODELS.items() if model in measured]
        parts.append(weights_table(measured["weight_passes"]))
    write_section(PAGE, BEGIN, END, "\n\n".join(parts))
    print(PAGE.name)


def step_table(measured: dict[str, Any], model: str, title: str) -> str:
    """Time and memory of every candidate."""
    rows = [[title, "time", "quartiles", "ms", "tensors at the peak", "MB", "resident at the peak", "MB"]]
    for row in measured[model]:
        low, high = row["time_ratio_quartiles"]
        cells = [
            row["candidate"],
            f"{row['time_ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{row['milliseconds']:.0f}",
        ]
        if "memory_bytes" in row:
            memory = row["memory_bytes"]
            for ratio, what in (("tensors_ratio", "live"), ("memory_ratio", "growth")):
                cells += [f"{row[ratio]:.2f}", f"{(memory['persistent'] + memory[what]) / 1e6:.0f}"]
        rows.append(cells + [""] * (len(rows[0]) - len(cells)))
    return markdown_table(rows)


def weights_table(measured: list[dict[str, Any]]) -> str:
    """The passes over all weights."""
    names = list(measured[0]["milliseconds"])
    rows = [["all weights, W4A4, ms", *names]]
    for row in measured:
        rows.append([MODELS[row["model"]].split(",")[0], *(f"{row['milliseconds'][name]:.1f}" for name in names)])
    return markdown_table(rows)


if __name__ == "__main__":
    main()
