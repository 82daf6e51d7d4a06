"""Whether stored labels can be what a teacher said: a checksum only tells that they were not damaged since."""

from __future__ import annotations

import numpy as np

from .records import ImageLabels

_ROUNDING = 0.01
"""How far probabilities in 16 bits may be from a sum of 1: each is off by 2^-11 of itself, or by 2^-25."""


def impossible_label(labels: ImageLabels, num_classes: int) -> tuple[tuple[int, ...], str] | None:
    """Find the first crop whose box, classes or probabilities cannot be.

    Args:
        labels: of one image, or of several in arrays with one more dimension in front.
        num_classes: of the teacher.

    Returns:
        The index of the crop, (crop,) or (image, crop), and what is wrong with it; None if all is well.
    """
    left, top, right, bottom = _values_first(labels.boxes)
    empty = (left >= right) | (top >= bottom)
    if empty.any():
        at = _first(empty)
        return at, f"its box is {labels.boxes[at].tolist()}; accepted: left < right and top < bottom"
    if labels.classes is not None:
        classes = _values_first(labels.classes)
        if classes.max() >= num_classes:
            at = _first(classes.max(0) >= num_classes)
            return at, f"its classes are {labels.classes[at].tolist()}; accepted: 0 to {num_classes - 1}"
        for shift in range(1, len(classes)):  # every class is compared with every other one
            same = classes[shift:] == classes[:-shift]
            if same.any():
                at = _first(same.any(0))
                return at, f"its classes are {labels.classes[at].tolist()}; accepted: each once"
    probabilities = _values_first(labels.probabilities).astype(np.float32)
    total = probabilities.sum(0)
    least = 1 - _ROUNDING if labels.classes is None else np.finfo(np.float16).smallest_subnormal
    # Written so that NaN is refused.
    possible = (probabilities.min(0) >= 0) & (total >= least) & (total <= 1 + _ROUNDING)
    if not possible.all():
        at = _first(~possible)
        values = labels.probabilities[at]
        return at, (
            f"its probabilities go from {values.min():.4g} to {values.max():.4g} and sum to {total[at]:.4g}; accepted:"
            f" 0 to 1, {'with a sum of 1' if labels.classes is None else 'with a sum above 0 and at most 1'}"
        )
    return None


def _values_first(array: np.ndarray) -> np.ndarray:
    """The last dimension first: there are few values of each crop, and NumPy is slow in short rows."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _first(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(int(where.argmax()), where.shape))
