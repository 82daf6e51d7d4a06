"""The YAML that this package reads: plain values, every key once, no aliases, and a bounded size and depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 32


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ValueError: it cannot be read, is larger than `MAX_BYTES`, or is no YAML as this module takes it; the message
            names file and line.
    """
    try:
        # A byte more than is accepted, because not every file (a pipe, a device) tells its size.
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: it is not UTF-8 text ({error.reason}).") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return what YAML text holds; `where` it stands is for messages.

    Raises:
        ValueError: no valid YAML, a key that stands twice, an alias, a merge key, or too much of it.
    """
    if len(text.encode("utf-8")) > MAX_BYTES:
        raise ValueError(f"{where} is larger than {MAX_BYTES:,} bytes; accepted: YAML of at most that size.")
    loader: _StrictLoader | None = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"{where}{line} is not valid YAML: {error.problem or error.context}.") from error
    except OverflowError as error:  # an escape of no character, such as "\\UFFFFFFFF"
        raise ValueError(f"{where} is not valid YAML: {error}.") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{where}, line {line} is not valid YAML: {error.reason}.") from error
    finally:
        if loader is not None:
            loader.dispose()


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` without what makes a file mean something else than it seems to."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        # An alias may stand for the whole of another one: nine lines become a billion values.
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _problem(f"the alias *{event.anchor}; accepted: the value itself", event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _problem(f"values nested deeper than {MAX_DEPTH}", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _problem("the merge key <<; accepted: the fields themselves", key_node.start_mark)
            # The base class reports keys that cannot be looked up.
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise _problem(f"the key {key!r}; accepted: text and numbers", key_node.start_mark)
            if key in lines:
                raise _problem(f"{key!r} stands twice, first in line {lines[key]}", key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
            # Dates that the calendar does not have, numbers of thousands of digits, tags that do not fit.
            raise _problem(f"the value {str(node.value)[:40]!r} cannot be read ({error})", node.start_mark) from error


# YAML 1.1 wants a point and a sign of the exponent; people write 5e-4.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$|[-+]?\.\d+[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _problem(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
