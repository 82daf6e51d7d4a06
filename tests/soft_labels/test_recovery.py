"""From stored probabilities to soft labels."""

import numpy as np
import pytest

from hf_vaq.soft_labels import recover_probabilities

CLASSES = np.array([[4, 1], [0, 2]], dtype=np.uint16)
STORED = np.array([[0.5, 0.25], [0.75, 0.125]], dtype=np.float16)


def test_smoothing_spreads_the_rest_evenly():
    labels = recover_probabilities(CLASSES, STORED, 5, "smoothing")
    third, twenty_fourth = 0.25 / 3, 0.125 / 3
    expected = [
        [third, 0.25, third, third, 0.5],
        [0.75, twenty_fourth, 0.125, twenty_fourth, twenty_fourth],
    ]
    assert labels.dtype == np.float32
    assert labels == pytest.approx(np.array(expected), abs=1e-7)


def test_renormalization_gives_the_others_nothing():
    labels = recover_probabilities(CLASSES, STORED, 5, "renormalization")
    assert labels == pytest.approx(np.array([[0, 1 / 3, 0, 0, 2 / 3], [6 / 7, 0, 1 / 7, 0, 0]]), abs=1e-7)


@pytest.mark.parametrize("recovery", ["smoothing", "renormalization"])
def test_labels_are_distributions_whatever_was_rounded(recovery):
    logits = np.random.default_rng(0).normal(0, 8, (2000, 10))
    exact = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    classes = np.argsort(-exact, -1)[:, :3].astype(np.uint16)
    stored = np.take_along_axis(exact, classes.astype(int), -1).astype(np.float16)
    assert (stored.astype(np.float64).sum(-1) > 1).any(), "rounding up has to occur for this test to mean something"
    labels = recover_probabilities(classes, stored, 10, recovery)
    assert labels.min() >= 0
    assert labels.sum(-1) == pytest.approx(np.ones(2000), abs=1e-6)


def test_all_classes_are_returned_in_order_with_sum_one():
    exact = np.array([[0.1, 0.7, 0.2]])
    labels = recover_probabilities(None, exact.astype(np.float16), 3)
    assert labels == pytest.approx(exact, rel=2**-10)
    assert labels.sum() == pytest.approx(1, abs=1e-7)


def test_another_recovery_is_refused():
    with pytest.raises(ValueError, match="soft_label_recovery is 'half'; accepted: smoothing or renormalization"):
        recover_probabilities(CLASSES, STORED, 5, "half")
