"""The fields of a recipe as text, for `hf-vaq train --help`."""

from __future__ import annotations

import dataclasses
import textwrap

from transformers import TrainingArguments

from .parsing import SECTIONS

_FROM_TRANSFORMERS = {field.name for field in dataclasses.fields(TrainingArguments)}


def describe_fields() -> str:
    """List every field of our own by section, with default and help; those of transformers are only pointed at."""
    paragraphs = []
    for section in SECTIONS:
        heading = (section.__doc__ or "").strip().splitlines()[0]
        lines = [f"{section.__name__}: {heading}"]
        for field in dataclasses.fields(section):
            if not field.init or (issubclass(section, TrainingArguments) and field.name in _FROM_TRANSFORMERS):
                continue
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            text = f"{field.metadata.get('help', '')} (default: {'none' if default is None else default})"
            lines.append(f"  --{field.name}")
            lines += textwrap.wrap(text, width=108, initial_indent=" " * 8, subsequent_indent=" " * 8)
        paragraphs.append("\n".join(lines))
    paragraphs.append(
        "Every field of transformers.TrainingArguments is accepted as well: --learning_rate, --seed, ..."
    )
    return "\n\n".join(paragraphs)
