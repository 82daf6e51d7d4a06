"""Intervals against scipy's bootstrap, against the binomial distribution, and against what can be known."""

import numpy as np
import pytest
import scipy.stats

from hf_vaq.evaluation import bootstrap_interval


def hits(count: int, right: int) -> np.ndarray:
    return (np.arange(count) < right).astype(np.int8)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_an_accuracy_is_scipys_percentile_bootstrap(level):
    outcomes = hits(400, 310)
    ours = bootstrap_interval(outcomes, confidence_level=level, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (outcomes,), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    # One image is 0.0025; the quantiles of two draws differ by less than two.
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_the_interval_of_a_difference_is_scipys_paired_bootstrap():
    generator = np.random.default_rng(0)
    first = generator.random(500) < 0.8
    second = np.where(generator.random(500) < 0.9, first, ~first)
    ours = bootstrap_interval(second.astype(int) - first, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (second, first),
        lambda one, other, axis: one.mean(axis) - other.mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_a_paired_difference_is_narrower_than_the_two_accuracies():
    # Two models that err on nearly the same images: their accuracies are uncertain, their difference hardly.
    first, second = hits(1000, 700), hits(1000, 705)
    low, high = bootstrap_interval(second - first)
    assert high - low < 0.012 < np.diff(bootstrap_interval(first))[0]
    assert 0 < low < 0.005 < high


def test_the_ends_are_quantiles_of_the_binomial_distribution():
    count, right = 250, 200
    low, high = bootstrap_interval(hits(count, right), resamples=200_000)
    expected = scipy.stats.binom.ppf([0.025, 0.975], count, right / count) / count
    assert (low, high) == pytest.approx(tuple(expected), abs=1.01 / count)


def test_fifty_thousand_images_are_nothing_to_resample():
    low, high = bootstrap_interval(hits(50_000, 36_000), resamples=100_000)
    # 1.96 standard errors of the mean
    assert (0.72 - low, high - 0.72) == pytest.approx((1.96 * np.sqrt(0.72 * 0.28 / 50_000),) * 2, rel=0.03)


def test_a_model_that_is_always_right_has_an_interval_of_no_width():
    assert bootstrap_interval(np.ones(30)) == (1.0, 1.0)


def test_the_seed_decides():
    outcomes = hits(300, 200)
    assert bootstrap_interval(outcomes, resamples=50, seed=3) == bootstrap_interval(outcomes, resamples=50, seed=3)
    assert bootstrap_interval(outcomes, resamples=50, seed=3) != bootstrap_interval(outcomes, resamples=50, seed=4)


@pytest.mark.parametrize(
    ("outcomes", "options", "message"),
    [
        ([], {}, "shape .0,."),
        ([[1, 0]], {}, "shape .1, 2."),
        ([1, 0], {"confidence_level": 1.0}, "confidence_level is 1.0"),
        ([1, 0], {"resamples": 0}, "resamples is 0"),
        ([1, 0], {"seed": -1}, "seed is -1"),
    ],
)
def test_what_makes_no_interval_is_refused(outcomes, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.asarray(outcomes), **options)
