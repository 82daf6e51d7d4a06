"""Match the class names of a data set with those of a model, which spell them differently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_PLACEHOLDER = re.compile(r"LABEL_\d+")


def has_placeholders(id2label: Mapping[int, str]) -> bool:
    """Tell whether a model's labels are only "LABEL_0", "LABEL_1", ..., which name nothing."""
    return all(_PLACEHOLDER.fullmatch(str(name)) for name in id2label.values())


def match_names(names: Sequence[str], id2label: Mapping[int, str], label_column: str) -> np.ndarray:
    """Return the model's class index of every name, int64, shape (names,).

    In this order: the same names in the same order; a model with placeholders and as many classes takes the order;
    the name as it is spelt; the whole name (case and underscores do not count); a shared synonym, because ImageNet's
    classes are lists of them ("tench, Tinca tinca" is "tench"). Where several classes of the model would do, as for
    "crane", the position decides if all other names stand at the same position on both sides.

    Raises:
        ValueError: a name that the model does not know, or one that does not tell its classes apart.
    """
    model_names = [str(id2label[index]) for index in range(len(id2label))]
    names = list(names)
    if names == model_names:
        return np.arange(len(names))
    if has_placeholders(id2label):
        if len(names) != len(model_names):
            raise ValueError(
                f"label_column {label_column!r} has {len(names)} classes, the model {len(model_names)} without names; "
                "they cannot be matched."
            )
        return np.arange(len(names))
    candidates = _candidates(names, model_names)
    found = _by_position(candidates, model_names) or [one[0] if len(one) == 1 else None for one in candidates]
    unknown = [name for name, one, index in zip(names, candidates, found, strict=True) if index is None and not one]
    if unknown:
        raise ValueError(
            f"label_column {label_column!r} has labels that the model does not know: {_some(unknown)}. The model's "
            f"labels are {_some(model_names)}. Accepted: a column with the model's label names, or one with its class "
            "indices as plain integers."
        )
    for name, one, index in zip(names, candidates, found, strict=True):
        if index is None:
            raise ValueError(
                f"label_column {label_column!r} has the label {name!r}, which could be any of the model's classes "
                f"{', '.join(f'{i} ({model_names[i]!r})' for i in one)}. Accepted: a column with the model's class "
                "indices as plain integers."
            )
    twice = [index for index, count in Counter(found).items() if count > 1]
    if twice:
        same = [name for name, index in zip(names, found, strict=True) if index == twice[0]]
        raise ValueError(
            f"label_column {label_column!r} has the labels {_some(same)}, which are one class of the model: "
            f"{model_names[twice[0]]!r}. Accepted: labels that the model tells apart."
        )
    return np.asarray(found, dtype=np.int64)


def _candidates(names: list[str], model_names: list[str]) -> list[list[int]]:
    """The classes of the model that each name may mean: as it is spelt, by the whole name, or by a synonym.

    A looser reading counts only where a stricter one finds nothing, so "Cardigan", a dog, and "cardigan", a jacket,
    are told apart.
    """
    readings = (lambda name: {name}, lambda name: {_normalized(name)}, _synonyms)
    result: list[list[int]] = [[] for _ in names]
    for reading in readings:
        classes: dict[str, set[int]] = {}
        for index, name in enumerate(model_names):
            for part in reading(name):
                classes.setdefault(part, set()).add(index)
        for place, name in enumerate(names):
            if not result[place]:
                result[place] = sorted(set().union(*(classes.get(part, ()) for part in reading(name))))
    return result


def _by_position(candidates: list[list[int]], model_names: list[str]) -> list[int] | None:
    """The position of every name, if each that means one class stands at that class; otherwise None."""
    if len(candidates) != len(model_names):
        return None
    count = Counter(model_names)
    for index, one in enumerate(candidates):
        # ImageNet checkpoints call two classes "crane", and data sets tell them apart by names of their own.
        if index not in one and (one or count[model_names[index]] == 1):
            return None
    return list(range(len(model_names)))


def _normalized(name: str) -> str:
    """Return a name without what does not count: case and underscores."""
    return name.replace("_", " ").strip().casefold()


def _synonyms(name: str) -> set[str]:
    return {part.strip() for part in _normalized(name).split(",")} - {""}


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
