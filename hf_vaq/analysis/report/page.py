"""A report as one self-contained HTML page: text, figures in two themes, tables that sort."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..figures import DARK, LIGHT, render
from ..figures.style import Draw

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TextBlock:
    """A paragraph of plain text; line ends count."""

    text: str


@dataclass(frozen=True)
class CodeBlock:
    """Text to be copied, shown as it is."""

    text: str


@dataclass(frozen=True)
class FigureBlock:
    """A figure.

    Attributes:
        name: of its PNG file, and of its anchor in the page.
        draw: makes the figure in a theme.
        caption: what it shows and how it is read; a sentence or two.
        description: what is to be seen, for those who cannot see it.
    """

    name: str
    draw: Draw
    caption: str
    description: str


@dataclass(frozen=True)
class TableBlock:
    """A table that sorts by the column whose head is clicked.

    Attributes:
        frame: its rows.
        caption: what it shows.
        decimals: digits after the point, by column; four significant digits where none are given.
    """

    frame: pandas.DataFrame
    caption: str
    decimals: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        title: of the page.
        summary: what was found, in a sentence or two.
        facts: what was done, as pairs of a name and a value.
        command: the command that made it.
        sections: heading and blocks.
    """

    title: str
    summary: str
    facts: Mapping[str, str]
    command: str
    sections: Sequence[tuple[str, Sequence[TextBlock | CodeBlock | FigureBlock | TableBlock]]]

    def figures(self) -> dict[str, bytes]:
        """PNG files in the light theme, by name."""
        blocks = [block for _, blocks in self.sections for block in blocks]
        return {block.name: render(block.draw, LIGHT) for block in blocks if isinstance(block, FigureBlock)}

    def to_html(self, figures: Mapping[str, bytes] | None = None) -> str:
        """The page.

        Args:
            figures: what `figures` returned; drawn again if not given.
        """
        figures = self.figures() if figures is None else figures
        sections = "".join(self._section(heading, blocks, figures) for heading, blocks in self.sections)
        facts = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in self.facts.items()
        )
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(self.title)}</title>
<link rel="icon" href="data:,">
<style>
{_asset("report.css")}</style>
</head>
<body>
<header>
<h1>{escape(self.title)}</h1>
<button type="button" id="theme">Dark or light</button>
</header>
<main>
<p class="summary">{escape(self.summary)}</p>
<dl class="facts">{facts}</dl>
<p class="command">Made by <code>{escape(self.command)}</code></p>
{sections}</main>
<script>
{_asset("report.js")}</script>
</body>
</html>
"""

    def _section(self, heading: str, blocks: Sequence[Any], figures: Mapping[str, bytes]) -> str:
        inside = []
        for block in blocks:
            if isinstance(block, TextBlock):
                inside.append(f"<p>{escape(block.text)}</p>")
            elif isinstance(block, CodeBlock):
                inside.append(f"<pre><code>{escape(block.text)}</code></pre>")
            elif isinstance(block, FigureBlock):
                inside.append(_figure(block, figures[block.name]))
            else:
                inside.append(_table(block))
        return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(inside) + "\n</section>\n"


# The page may show its own images and run its own script, and may not ask any server for anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _figure(block: FigureBlock, light: bytes) -> str:
    images = ((LIGHT, light), (DARK, render(block.draw, DARK)))
    tags = "".join(
        f'<img class="{theme.name}" alt="{escape(block.description)}"'
        f' src="data:image/png;base64,{base64.b64encode(image).decode("ascii")}">'
        for theme, image in images
    )
    return f'<figure id="{escape(block.name)}">{tags}<figcaption>{escape(block.caption)}</figcaption></figure>'


def _table(block: TableBlock) -> str:
    decimals = block.decimals or {}
    columns = [str(column) for column in block.frame.columns]
    numeric = [_is_numeric(block.frame[column]) for column in block.frame.columns]
    heads = "".join(
        f'<th scope="col"{" class=number" if number else ""}>'
        f'<button type="button">{escape(_words(column))}</button></th>'
        for column, number in zip(columns, numeric, strict=True)
    )
    rows = []
    for row in block.frame.itertuples(index=False):
        cells = []
        for column, number, value in zip(columns, numeric, row, strict=True):
            if number:
                known = value is not None and math.isfinite(value)
                key = f' data-value="{float(value)!r}"' if known else ""
                text = _number(value, decimals.get(column)) if known else "–"
                cells.append(f"<td class=number{key}>{text}</td>")
            else:
                cells.append(f"<td>{escape('' if value is None else str(value))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><caption><span>{escape(block.caption)}</span></caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>{chr(10).join(rows)}</tbody></table></div>"
    )


def _is_numeric(column: pandas.Series) -> bool:
    return all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in column.tolist()
    )


def _number(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:,.{decimals}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _words(column: str) -> str:
    return column.replace("_", " ")
