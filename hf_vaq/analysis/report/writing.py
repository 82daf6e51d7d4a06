"""The folder that an analysis leaves: report, numbers, tables and figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if not os.access(folder, os.W_OK):
        raise ValueError(f"output {str(folder)!r} cannot be written.")


def write_analysis(
    folder: Path, report: Report, results: Mapping[str, Any], tables: Mapping[str, pandas.DataFrame]
) -> None:
    """Write report, numbers, tables (Parquet) and figures (PNG); every file appears whole or not at all.

    Args:
        folder: made if it does not exist.
        report: the page.
        results: what JSON can hold; NaN and infinity become null.
        tables: by the name of their file.
    """
    figures = report.figures()
    for name, image in figures.items():
        _write(folder / FIGURES / f"{name}.png", image)
    for name, table in tables.items():
        _write(folder / TABLES / f"{name}.parquet", table.to_parquet(index=False))
    text = json.dumps(_plain(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(folder / RESULTS, text.encode())
    _write(folder / REPORT, report.to_html(figures).encode())


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
