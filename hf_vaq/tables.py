"""Tables for people, and the short names in them."""

from __future__ import annotations

from collections.abc import Sequence


def bits_name(weight_bits: int | None, activation_bits: int | None) -> str:
    """Return the usual short form, such as "W2A2"; a side in floating point counts 32 bits."""
    return f"W{weight_bits or 32}A{activation_bits or 32}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns: the first to the left, the others to the right; a rule under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    return "\n".join([lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])
