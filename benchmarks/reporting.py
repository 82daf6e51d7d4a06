"""What the benchmark scripts share: results files, tables for the documentation, the data that is not shipped."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from hf_vaq.machine import machine

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, measured: Any) -> Path:
    """Write `results/<name>.json`: what was measured, where, and the command that repeats it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    content = {"command": command, "machine": machine(), "measured": measured}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def markdown_table(rows: list[list[str]]) -> str:
    """A header and rows; all columns but the first hold numbers."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---|{'---:|' * (len(rows[0]) - 1)}", *lines[1:]])


def write_section(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between the lines `begin` and `end` of a page.

    Raises:
        ValueError: if the page has no such lines.
    """
    before, found_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{page.name} has no lines {begin!r} and {end!r}.")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def data_folder(*parts: str) -> list[str]:
    """Paths of parts of the data that is not shipped, see docs/benchmarks.md; ends the script where one is absent."""
    root = os.environ.get("HF_VAQ_DATA")
    if root is None:
        sys.exit("HF_VAQ_DATA is not set: it names a folder of data that is not shipped, see docs/benchmarks.md.")
    paths = [Path(root) / part for part in parts]
    for path in paths:
        if not path.exists():
            sys.exit(f"HF_VAQ_DATA={root} has no {path.name}, see docs/benchmarks.md.")
    return [str(path) for path in paths]
