"""From the stored probabilities of a few classes to a distribution over all of them."""

from __future__ import annotations

import numpy as np

RECOVERIES = ("smoothing", "renormalization")


def recover_probabilities(
    classes: np.ndarray | None, probabilities: np.ndarray, num_classes: int, recovery: str = "smoothing"
) -> np.ndarray:
    """Recover soft labels from what a store holds of them (Shen and Xing, ECCV 2022, section 3.2).

    "smoothing" (marginal smoothing) spreads what the stored classes lack to a sum of 1 evenly over the others;
    "renormalization" (marginal renormalization) gives the others nothing and scales the stored ones to a sum of 1.
    Where all classes are stored, both scale them to a sum of 1, which rounding to 16 bits changed by at most 2^-11.

    Args:
        classes: indices of the stored classes, (..., k), or None where all are stored, in order.
        probabilities: their probabilities, (..., k).
        num_classes: of the teacher.
        recovery: "smoothing" or "renormalization".

    Returns:
        float32 (..., num_classes); each sums to 1.

    Raises:
        ValueError: another `recovery`.
    """
    if recovery not in RECOVERIES:
        raise ValueError(f"soft_label_recovery is {recovery!r}; accepted: {' or '.join(RECOVERIES)}.")
    stored = probabilities.astype(np.float32)
    total = stored.sum(-1, keepdims=True)
    if classes is None:
        return stored / total
    if recovery == "renormalization":
        stored, rest = stored / total, np.zeros_like(total)
    else:
        # Rounding may lift the stored ones above 1 together.
        stored = stored / np.maximum(total, 1)
        rest = np.maximum(1 - total, 0) / (num_classes - stored.shape[-1])
    labels = np.broadcast_to(rest, (*stored.shape[:-1], num_classes)).copy()
    np.put_along_axis(labels, classes.astype(np.int64), stored, -1)
    return labels
