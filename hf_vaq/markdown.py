"""Text that others chose, in Markdown: it shows as it is, and neither ends a cell or a block nor becomes markup."""

from __future__ import annotations

import re

_SPECIAL = re.compile(
    r"[\\`*\[\]<|~$]"
    r"|(?<!\w)_|_(?!\w)"  # within a word it stands for itself
    r"|&(?=#?\w+;)"
)


def plain(text: object) -> str:
    """Return text for a heading, a cell of a table, or a sentence that does not begin with it, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", _one_line(text))


def code(text: object) -> str:
    """Return text as code between backticks, for a sentence or the cell of a table."""
    line = _one_line(text).replace("|", "\\|") or " "  # tables take that as a bar, in code too
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _one_line(text: object) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
