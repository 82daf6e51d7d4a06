"""Turn what YAML or the command line holds into a value of a field's type."""

from __future__ import annotations

import contextlib
import datetime
import enum
import math
import types
import typing
from typing import Any

NONE = ("none", "None", "null")


def convert(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint` of the field `name`.

    YAML 1.1 reads `5e-4` as text, `no` as False and `2` as an integer; here the type of the field decides what was
    meant.

    Raises:
        ValueError: the value does not fit, naming the field, the value and what is accepted.
    """
    if isinstance(value, dict) and not _is_finite(value):
        raise ValueError(f"{name} is {value!r}; accepted: finite numbers only.")
    options = _options(hint)
    if any(_is_enum(option) for option in options):
        # transformers types these `SaveStrategy | str`, but takes no other text than the members'
        options = [option for option in options if option is not str]
    if value is None or (value in NONE and str not in options):
        if types.NoneType in options:
            return None
        raise ValueError(f"{name} is none; accepted: {_describe(options)}.")
    for option in sorted(options, key=_priority):
        fitted = _fit(value, option)
        if fitted is not None:
            return fitted
    raise ValueError(f"{name} is {value!r}; accepted: {_describe(options)}.")


def _options(hint: Any) -> list[Any]:
    """List the alternatives of a type: `int | None` gives int and NoneType."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return list(typing.get_args(hint))
    return [hint]


def _priority(option: Any) -> int:
    """Try the strict types first and text, which takes anything, last."""
    if option is str:
        return 9
    return 1 if typing.get_origin(option) is list else 0


def _fit(value: Any, option: Any) -> Any:
    """Return the value as the type `option`, or None if it does not fit."""
    origin = typing.get_origin(option)
    if option is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())
    if option in (int, float):
        return _number(value, option)
    if option is dict or origin is dict:
        return value if isinstance(value, dict) else None
    if origin is list or option is list:
        return _list(value, (typing.get_args(option) or (str,))[0])
    if origin is typing.Literal:
        return value if value in typing.get_args(option) else None
    if _is_enum(option):
        text = _text(value)
        return text if text in {member.value for member in option} else None
    if option is str:
        return _text(value) if isinstance(value, (str, int, float, datetime.date)) else None
    return None


def _number(value: Any, kind: type) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if kind is int:
        with contextlib.suppress(ValueError):
            return value if isinstance(value, int) else int(str(value))
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    if kind is float:
        return number
    return int(number) if number.is_integer() else None


def _is_finite(value: Any) -> bool:
    """Whether no number in nested mappings and lists is infinite or NaN."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _list(value: Any, item: Any) -> list | None:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(entry, dict) for entry in values):
        return None
    fitted = [_fit(entry, item) for entry in values]
    return None if any(entry is None for entry in fitted) else fitted


def _text(value: Any) -> str:
    """Undo YAML's booleans where text is wanted: `save_strategy: no` means "no"."""
    if isinstance(value, bool):
        return "true" if value else "no"
    return str(value)


def _is_enum(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, enum.Enum)


def _describe(options: list[Any]) -> str:
    names = []
    for option in options:
        if _is_enum(option):
            names += [repr(member.value) for member in option]
        elif option is types.NoneType:
            names.append("none")
        elif typing.get_origin(option) is typing.Literal:
            names += [repr(value) for value in typing.get_args(option)]
        else:
            names.append(_NAMES.get(option) or _NAMES.get(typing.get_origin(option)) or str(option))
    return ", ".join(names)


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}
