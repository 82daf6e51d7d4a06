"""The folder that an analysis leaves: report, numbers, tables and figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_problem
from .page import Report

if TYPE_CHECKING:
    import pandas

REPORT, RESULTS, TABLES, FIGURES, CACHE = "report.html", "results.json", "tables", "figures", "cache"


def claim_folder(folder: Path, also: tuple[str, ...] = ()) -> None:
    """Make the folder of an analysis, before any work is done. One of an earlier analysis is taken over.

    Args:
        folder: where to write.
        also: names of more files that the analysis writes there.

    Raises:
        ValueError: it holds something else, or cannot be written.
    """
    known = {REPORT, RESULTS, TABLES, FIGURES, CACHE, *also}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(name for name in os.listdir(folder) if name not in known and not name.startswith("."))
    except OSError as error:
        raise ValueError(f"output {str(folder)!r} cannot be used as a folder: {error.strerror or error}.") from error
    if foreign:
        raise ValueError(
            f"output {str(folder)!r} holds {foreign[0]!r}, which is not from an analysis; accepted: a new or empty"
            " folder, or one of an earlier analysis."
        )
    for name in sorted(known & set(os.listdir(folder))):
        if (folder / name).is_dir() != (name in (TABLES, FIGURES, CACHE)):
            kind = "a folder" if (folder / name).is_dir() else "a file"
            raise ValueError(f"output {str(folder)!r} holds {kind} {name!r}, which is not from an analysis.")
    for place in (folder, folder / TABLES, folder / FIGURES):
        if place.is_dir() and (problem := write_problem(place)) is not None:
            raise ValueError(f"output {str(place)!r} cannot be written: {problem}.")


def write_analysis(
    folder: Path, report: Report, results: Mapping[str, Any], tables: Mapping[str, pandas.DataFrame]
) -> None:
    """Write numbers, tables (Parquet), figures (PNG) and report; every file appears whole or not at all.

    What was measured is on the disk before anything is drawn.

    Args:
        folder: made if it does not exist.
        report: the page.
        results: what JSON can hold; NaN and infinity become null.
        tables: by the name of their file.

    Raises:
        ValueError: a figure, or the page, cannot be made; the numbers are written.
    """
    # A name that is no Unicode (of a folder) becomes an escape of JSON.
    text = json.dumps(_plain(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(folder / RESULTS, text.encode(errors="backslashreplace"))
    for name, table in tables.items():
        _write(folder / TABLES / f"{name}.parquet", table.to_parquet(index=False))
    try:
        figures = report.figures()
        page = report.to_html(figures)
    except Exception as error:
        raise ValueError(
            f"the report cannot be drawn ({type(error).__name__}: {error}); the numbers are in {str(folder)!r}:"
            f" {RESULTS} and {TABLES}."
        ) from error
    for name, image in figures.items():
        _write(folder / FIGURES / f"{name}.png", image)
    _write(folder / REPORT, page.encode(errors="xmlcharrefreplace"))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
