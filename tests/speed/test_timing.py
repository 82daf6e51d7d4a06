"""Interleaved timing: order, pairing, medians, and which rounds count, with a clock that the test turns."""

import statistics

import pytest

from hf_vaq.speed import Spread, time_interleaved


class Clock:
    """Time passes only when a call says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Load:
    """Foreign load as the test has it: one value a window, the last one for ever."""

    def __init__(self, *cores):
        self.values = list(cores)
        self.starts = 0

    def start(self):
        self.starts += 1

    def cores(self):
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]

    def disturbs(self, cores, seconds):
        return cores is not None and cores > 0.1


def calls_of(clock, log, **seconds):
    def call(name, duration):
        def run():
            log.append(name)
            clock.now += duration() if callable(duration) else duration

        return run

    return {name: call(name, duration) for name, duration in seconds.items()}


def test_every_round_calls_everything_and_ratios_are_paired_by_round():
    clock, log = Clock(), []
    # Both become slower together from round to round, as on a machine that is throttled: the ratio stays 4.
    calls = calls_of(clock, log, slow=lambda: 4 * (1 + len(log)), fast=lambda: 1 + len(log))
    times = time_interleaved(calls, runs=6, warm_up=0, repeats=1, clock=clock, load=Load(0.0))
    assert times.rounds == 6 and times.rejected_rounds == 0 and times.quiet
    rounds = [log[start : start + 4] for start in range(0, len(log), 4)]
    assert all(sorted(names) == ["fast", "fast", "slow", "slow"] for names in rounds)
    assert all(names[0] == names[1] and names[2] == names[3] for names in rounds)  # untimed call, then the timed one
    assert len({tuple(names) for names in rounds}) == 2  # no fixed order
    assert max(times.seconds["fast"]) > 2 * min(times.seconds["fast"])
    ratios = [slow / fast for slow, fast in zip(times.seconds["slow"], times.seconds["fast"], strict=True)]
    assert times.speed_up("fast").median == pytest.approx(statistics.median(ratios))
    assert times.speed_up("slow") == Spread(1.0, 1.0, 1.0)


def test_the_first_call_of_a_turn_is_not_timed_and_the_median_of_the_others_is():
    clock, log = Clock(), []
    durations = iter([100.0, 3.0, 50.0, 1.0] * 4)
    calls = calls_of(clock, log, only=lambda: next(durations))
    times = time_interleaved(calls, runs=4, warm_up=0, repeats=3, clock=clock, load=Load(0.0))
    assert times.seconds == {"only": [3.0] * 4}


def test_warm_up_calls_come_before_everything():
    clock, log = Clock(), []
    time_interleaved(calls_of(clock, log, a=1, b=1), runs=1, warm_up=2, repeats=1, clock=clock, load=Load(0.0))
    assert log[:4] == ["a", "a", "b", "b"] and len(log) == 8


def test_disturbed_rounds_are_thrown_away_and_repeated():
    clock, log = Clock(), []
    # Each window is one round of 4 seconds; the second and third are disturbed and ten times as slow.
    window = lambda: len(log) - 1  # noqa: E731
    calls = calls_of(clock, log, a=lambda: 20.0 if 2 <= window() < 6 else 2.0)
    load = Load(0.0, 0.9, 0.9, 0.02, 0.04, 0.0, 0.0)
    times = time_interleaved(calls, runs=5, warm_up=0, repeats=1, clock=clock, load=load)
    assert times.seconds == {"a": [2.0] * 5}
    assert (times.rounds, times.rejected_rounds, times.quiet) == (5, 2, True)
    assert times.foreign_cores == pytest.approx((0.02 + 0.04) / 5)


def test_a_machine_that_is_never_quiet_ends_the_measurement_and_is_named():
    clock, log = Clock(), []
    times = time_interleaved(calls_of(clock, log, a=1.0), runs=6, warm_up=0, repeats=1, clock=clock, load=Load(1.0))
    assert not times.quiet and times.foreign_cores is None
    assert times.rounds == 12 and len(log) == 24  # twice as many as asked, then it gives up and keeps all


def test_short_rounds_are_judged_together():
    clock, log = Clock(), []
    load = Load(0.0)
    time_interleaved(calls_of(clock, log, a=0.05), runs=20, warm_up=0, repeats=1, clock=clock, load=load)
    assert load.starts == 4  # five rounds of 0.1 s make the half second of a window


def test_unknown_load_counts_as_quiet():
    clock = Clock()
    times = time_interleaved(calls_of(clock, [], a=1.0), runs=2, clock=clock, load=Load(None))
    assert times.quiet and times.foreign_cores is None


def test_the_spread_is_the_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0}, "runs is 0; accepted: 1 and above"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warm_up": -1}, "warm_up is -1; accepted: 0 and above"),
        ({"reference": "b"}, "reference is 'b'; accepted: 'a'"),
    ],
)
def test_bad_arguments_are_refused_before_any_call(arguments, message):
    log = []
    with pytest.raises(ValueError, match=message):
        time_interleaved(calls_of(Clock(), log, a=1.0), **arguments)
    assert log == []


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="nothing to time"):
        time_interleaved({})
