"""Percentile bootstrap intervals of an accuracy, and of the difference between two on the same images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Lower and upper end, in the unit of the values."""

    low: float
    high: float


def bootstrap_interval(
    outcomes: np.ndarray, *, confidence_level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of the mean of `outcomes`.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3: draw as many images as there are, with
    replacement; take the mean; repeat; the interval lies between two quantiles of these means. An outcome is one of a
    few values (0 or 1 for right or wrong, -1, 0 or 1 for the difference of two models on one image), so a resample is
    known when it is known how often each occurs, and those counts follow a multinomial distribution. Drawing the
    counts instead of the images is the same bootstrap, and takes milliseconds for 50,000 images.

    Args:
        outcomes: one value an image, shape (images,); for two models, their difference image by image (paired).
        confidence_level: share of the resampled means that lie inside, between 0 and 1.
        resamples: how many resamples are drawn.
        seed: of the draws.

    Raises:
        ValueError: no outcome, a level outside (0, 1), fewer than one resample, or a negative seed.
    """
    outcomes = np.asarray(outcomes)
    if outcomes.ndim != 1 or len(outcomes) == 0:
        raise ValueError(f"outcomes has the shape {outcomes.shape}; accepted: (images,) with at least one image.")
    check_bootstrap(confidence_level, resamples, seed)
    values, counts = np.unique(outcomes, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(outcomes), counts / len(outcomes), size=resamples)
    means = drawn @ values.astype(np.float64) / len(outcomes)
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def check_bootstrap(confidence_level: float, resamples: int, seed: int) -> None:
    """Refuse settings of `bootstrap_interval` that make no interval.

    Raises:
        ValueError: a level outside (0, 1), fewer than one resample, or a negative seed.
    """
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level is {confidence_level!r}; accepted: above 0 and below 1, such as 0.95.")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples!r}; accepted: 1 and above.")
    if seed < 0:
        raise ValueError(f"seed is {seed!r}; accepted: 0 and above.")
