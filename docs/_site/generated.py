"""Hook of the documentation build: parts of pages that the program says about itself.

A comment in a page, `<!-- fields: NAME -->`, is replaced by the table of the fields of a recipe's section; another,
`<!-- commands -->`, by what every command prints with `--help`. On a git host, which does not run this, they are
invisible.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FIELDS = re.compile(r"^<!-- fields: (\w+) -->$", re.MULTILINE)
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the generated parts into a page."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n\n".join(describe_commands()))
    return FIELDS.sub(lambda mark: field_table(mark[1]), markdown)


def field_table(section: str) -> str:
    """Fields of a section of a recipe, such as "DataArguments", with default and meaning; ours only."""
    from hf_vaq.recipe.parsing import SECTIONS

    sections = {section.__name__: section for section in SECTIONS}
    # Fields that a section has from another library are described there.
    inherited = {field.name for base in sections[section].__bases__ for field in _fields(base)}
    rows = [
        f"| `{field.name}` | {_default(field)} | {_cell(field.metadata.get('help', ''))} |"
        for field in _fields(sections[section])
        if field.init and field.name not in inherited
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def describe_commands() -> Iterator[str]:
    """A heading for every command, and what it prints with `--help` in a block of code."""
    os.environ["COLUMNS"] = "88"  # argparse wraps at the width of the terminal
    from hf_vaq.cli import build_parser

    yield from _describe(build_parser())


def _describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not subparsers:
        yield f"## {parser.prog}"
        yield f"```text\n{parser.format_help().strip()}\n```"
    for action in subparsers:
        for command in action.choices.values():
            yield from _describe(command)


def _fields(section: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    return "none" if field.default is None else f"`{field.default}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
