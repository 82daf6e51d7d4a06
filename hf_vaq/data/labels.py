"""Bring the labels of a data set and the classes of a model together: by name where there are names."""

import re
from collections import Counter
from collections.abc import Mapping

import datasets
import numpy as np

_PLACEHOLDER = re.compile(r"LABEL_\d+")


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
    return [str(index) for index in range(int(values.max()) + 1)]


def model_labels(split: datasets.Dataset, label_column: str, id2label: Mapping[int, str]) -> np.ndarray:
    """Return for every row of the split the class index of the model, int64, shape (rows,).

    Names (a `ClassLabel` or a string column) are looked up in the model's `id2label`, so the order may differ and the
    model may know more classes; case and underscores do not count. Where the model itself has one name for several
    classes, as ImageNet checkpoints have, the position decides if all other names agree on theirs. Integers without
    names (such as a column with ImageNet's class numbers) are taken as the model's indices. A model whose labels are
    only placeholders ("LABEL_0", ...) takes the data set's order if the number of classes agrees.

    Raises:
        ValueError: a name that the model does not know, an index outside 0..num_labels-1, or an unlabelled row.
    """
    feature = split.features[label_column]
    if _is_string(feature):
        values = _column(split, label_column)
        names = sorted(set(values))
        positions = {name: position for position, name in enumerate(names)}
        return _indices_by_name(names, id2label, label_column)[np.asarray([positions[value] for value in values])]
    values = _integers(split, label_column)
    if not isinstance(feature, datasets.ClassLabel):
        _check_range(values, len(id2label), label_column)
        return values
    _check_range(values, len(feature.names), label_column)
    return _indices_by_name(feature.names, id2label, label_column)[values]


def _indices_by_name(names: list[str], id2label: Mapping[int, str], label_column: str) -> np.ndarray:
    model_names = [str(id2label[index]) for index in range(len(id2label))]
    if names == model_names:
        return np.arange(len(names))
    if all(_PLACEHOLDER.fullmatch(name) for name in model_names):
        if len(names) != len(model_names):
            raise ValueError(
                f"label_column {label_column!r} has {len(names)} classes, the model {len(model_names)} without names; "
                "they cannot be matched."
            )
        return np.arange(len(names))
    found = _positions(names, model_names)
    unknown = [name for name, index in zip(names, found, strict=True) if index is None]
    if unknown:
        raise ValueError(
            f"label_column {label_column!r} has labels that the model does not know: {_some(unknown)}. The model's "
            f"labels are {_some(model_names)}. Accepted: a column with the model's label names, or one with its class "
            "indices as plain integers."
        )
    return np.asarray(found, dtype=np.int64)


def _positions(names: list[str], model_names: list[str]) -> list[int | None]:
    """Index of each name in the model, None where it has none."""
    spelling = _normalized
    if len({_normalized(name) for name in model_names}) < len(set(model_names)):
        # Names that differ only in case or underscores must then be spelt exactly.
        spelling = str
    count = Counter(spelling(name) for name in model_names)
    index_of = {spelling(name): i for i, name in enumerate(model_names) if count[spelling(name)] == 1}
    found = [index_of.get(spelling(name)) for name in names]
    # ImageNet checkpoints call two classes "crane", and data sets tell them apart by other names. Where the model has
    # one name for several classes the position decides, if all other names stand at the same position on both sides.
    repeated = [count[spelling(name)] > 1 for name in model_names]
    same_order = len(names) == len(model_names) and all(index == i or repeated[i] for i, index in enumerate(found))
    return [i if repeated[i] else index for i, index in enumerate(found)] if same_order else found


def _column(split: datasets.Dataset, label_column: str) -> list:
    values = split.with_format("arrow")[label_column][:].to_pylist()
    _check_present(values, label_column)
    return values


def _integers(split: datasets.Dataset, label_column: str) -> np.ndarray:
    feature = split.features[label_column]
    if not isinstance(feature, datasets.ClassLabel) and not (
        isinstance(feature, datasets.Value) and "int" in feature.dtype
    ):
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        raise ValueError(
            f"label_column is {label_column!r}, whose type is {kind}; accepted: class labels, integers or strings."
        )
    return np.asarray(_column(split, label_column), dtype=np.int64)


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


def _normalized(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
