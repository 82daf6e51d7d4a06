"""Bring the labels of a data set and the classes of a model together: by name where there are names."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from .label_names import has_placeholders, match_names

MOST_CLASSES = 1_000_000
"""Of a new model; a column with higher numbers holds something else than classes."""


def dataset_label_names(split: datasets.Dataset, label_column: str) -> list[str]:
    """Return the class names a new model gets: those of the data set, or "0".."n-1" where it has only integers.

    Raises:
        ValueError: the column holds neither classes, strings nor integers from 0 on.
    """
    feature = split.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if _is_string(feature):
        return sorted(set(_column(split, label_column)))
    values = _integers(split, label_column)
    _check_range(values, None, label_column)
    if values.max() >= MOST_CLASSES:
        row = int(np.argmax(values))
        raise ValueError(
            f"label_column {label_column!r} holds {values[row]} in row {row}; accepted as the number of a class: 0 to "
            f"{MOST_CLASSES - 1}, for a new model has all classes up to the highest."
        )
    return [str(index) for index in range(int(values.max()) + 1)]


def model_labels(split: datasets.Dataset, label_column: str, id2label: Mapping[int, str]) -> np.ndarray:
    """Return for every row of the split the class index of the model, int64, shape (rows,).

    Names (a `ClassLabel` or a string column) are looked up in the model's `id2label`, so the order may differ and the
    model may know more classes; `match_names` says how. Integers without names (such as a column with ImageNet's class
    numbers) are taken as the model's indices.

    Raises:
        ValueError: a name that the model does not know, an index outside 0..num_labels-1, or an unlabelled row.
    """
    feature = split.features[label_column]
    if _is_string(feature):
        values = _column(split, label_column)
        names = sorted(set(values))
        positions = {name: position for position, name in enumerate(names)}
        return match_names(names, id2label, label_column)[np.asarray([positions[value] for value in values])]
    values = _integers(split, label_column)
    if not isinstance(feature, datasets.ClassLabel):
        _check_range(values, len(id2label), label_column)
        return values
    _check_range(values, len(feature.names), label_column)
    return match_names(feature.names, id2label, label_column)[values]


class LabelLookup:
    """Maps the labels of a stream to the class indices of a model, one at a time, as `model_labels` does.

    Args:
        feature: of the label column.
        label_column: for messages.
        id2label: of the model.

    Raises:
        ValueError: class names that do not match the model's, a column of another type, or strings for a model whose
            labels are only placeholders (the order of the classes would be known at the end of the stream only).
    """

    def __init__(self, feature: Any, label_column: str, id2label: Mapping[int, str]):
        self._column, self._id2label = label_column, id2label
        self._index_of: dict[Any, int] | None = None
        self._strings = _is_string(feature)
        if self._strings:
            if has_placeholders(id2label):
                raise ValueError(
                    f"label_column {label_column!r} holds strings, and the model's labels name nothing (LABEL_0, ...);"
                    " accepted in a stream: class labels, integers, or a model with names."
                )
            self._index_of = {}
        elif isinstance(feature, datasets.ClassLabel):
            self._index_of = dict(enumerate(match_names(feature.names, id2label, label_column).tolist()))
        else:
            _check_integers(feature, label_column)
            self._index_of = {index: index for index in range(len(id2label))}

    def __call__(self, value: Any, row: int) -> int:
        """Return the model's class index.

        Raises:
            ValueError: no label, or one that the model does not know; the message names the row.
        """
        if value is None:
            raise ValueError(f"label_column {self._column!r} has no label in row {row}.")
        index = self._index_of.get(value)
        if index is None and self._strings:
            index = self._index_of[value] = int(match_names([value], self._id2label, self._column)[0])
        if index is None:
            raise ValueError(
                f"label_column {self._column!r} holds {value} in row {row}; accepted: 0 to {len(self._index_of) - 1}."
            )
        return index


def _column(split: datasets.Dataset, label_column: str) -> list:
    values = split.with_format("arrow")[label_column][:].to_pylist()
    _check_present(values, label_column)
    return values


def _integers(split: datasets.Dataset, label_column: str) -> np.ndarray:
    _check_integers(split.features[label_column], label_column)
    values = _column(split, label_column)
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"label_column {label_column!r} holds {max(values)}; accepted: below 2^63.") from error


def _check_integers(feature: Any, label_column: str) -> None:
    if isinstance(feature, datasets.ClassLabel) or (isinstance(feature, datasets.Value) and "int" in feature.dtype):
        return
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    raise ValueError(
        f"label_column is {label_column!r}, whose type is {kind}; accepted: class labels, integers or strings."
    )


def _check_present(values: list, label_column: str) -> None:
    if None in values:
        raise ValueError(f"label_column {label_column!r} has no label in row {values.index(None)}.")


def _check_range(values: np.ndarray, num_labels: int | None, label_column: str) -> None:
    wrong = values < 0 if num_labels is None else (values < 0) | (values >= num_labels)
    if wrong.any():
        row = int(np.argmax(wrong))
        accepted = "0 and above" if num_labels is None else f"0 to {num_labels - 1}"
        raise ValueError(f"label_column {label_column!r} holds {values[row]} in row {row}; accepted: {accepted}.")


def _is_string(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
