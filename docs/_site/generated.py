"""Hook of the documentation build: parts of pages that the program says about itself.

A comment in a page, `<!-- fields: NAME -->` or `<!-- help: COMMAND -->`, is replaced by the table of the fields of a
recipe's section, or by what the command prints with `--help`. On a git host, which does not run this, it is invisible.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

MARK = re.compile(r"^<!-- (fields|help): ([\w -]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the generated parts into a page."""
    return MARK.sub(lambda mark: {"fields": field_table, "help": command_help}[mark[1]](mark[2]), markdown)


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


def command_help(command: str) -> str:
    """What `hf-vaq COMMAND --help` prints, in a block of code."""
    os.environ["COLUMNS"] = "88"  # argparse wraps at the width of the terminal
    from hf_vaq.cli import build_parser

    parser = build_parser()
    for word in command.split():
        (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = subparsers.choices[word]
    return f"```text\n{parser.format_help().strip()}\n```"


def _fields(section: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    return "none" if field.default is None else f"`{field.default}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
