"""Times of several callables measured side by side: interleaved, paired, without the rounds that others disturbed."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm.auto import tqdm
from transformers.utils import logging

from .foreign_load import ForeignLoad

logger = logging.get_logger(__name__)

_WINDOW_SECONDS = 0.5
"""Rounds are kept or thrown away together by windows of at least this length: the system counts in ticks of 10 ms."""

_MAX_REJECTED_SHARE = 2.0
"""After this many times the asked rounds were thrown away, the machine counts as busy and the measurement ends."""

_FEWEST_ROUNDS = 5
"""Undisturbed rounds that a median may be taken of, where the machine was too busy for all that were asked."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a measured quantity."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Median, lower and upper quartile of at least one value (linear interpolation)."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class InterleavedTimes:
    """What `time_interleaved` measured.

    Attributes:
        reference: name of the callable that the others are compared with.
        seconds: by name, the time of one call in each kept round; the n-th of every list is of the same round.
        rejected_rounds: rounds that were thrown away because other processes disturbed them.
        foreign_cores: cores that other processes used during the kept rounds, on average; None where unknown.
        quiet: whether the kept rounds were undisturbed. False where the machine was never quiet for long enough: then
            all rounds are kept, and their figures say little.
    """

    reference: str
    seconds: dict[str, list[float]]
    rejected_rounds: int
    foreign_cores: float | None
    quiet: bool

    @property
    def rounds(self) -> int:
        """How many rounds were kept."""
        return len(self.seconds[self.reference])

    def latency(self, name: str) -> Spread:
        """Seconds a call."""
        return Spread.of(self.seconds[name])

    def speed_up(self, name: str) -> Spread:
        """Time of the reference over that of `name`, paired by round: above 1 is faster than the reference."""
        pairs = zip(self.seconds[self.reference], self.seconds[name], strict=True)
        return Spread.of([reference / own for reference, own in pairs])


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    reference: str | None = None,
    runs: int = 20,
    warm_up: int = 3,
    repeats: int = 2,
    threads: int = 1,
    load: ForeignLoad | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = False,
    seed: int = 0,
) -> InterleavedTimes:
    """Time every callable once a round, for as many undisturbed rounds as `runs`.

    Times on one machine drift by tens of percent over minutes, so figures of separate runs cannot be compared; ratios
    within a round can. The order is drawn anew for every round. In its turn a callable is called once untimed, which
    brings its weights back into the caches, and then `repeats` times; the median counts. Rounds during which other
    processes used the processor are thrown away and repeated.

    Args:
        calls: what to time, by name. Each call must return when its work is done (synchronise an accelerator).
        reference: the name that the others are compared with (None: the first).
        runs: rounds to keep.
        warm_up: untimed calls of everything before the first round.
        repeats: timed calls a turn.
        threads: threads that the calls use, which says how much foreign load they bear.
        load: what watches other processes (None: the system's own counters).
        clock: seconds, of the timed calls.
        progress: show a progress bar on stderr.
        seed: of the order.

    Raises:
        ValueError: nothing to time, an unknown reference, or a number below 1 (`warm_up`: below 0).
    """
    reference = _check(calls, reference, runs=runs, repeats=repeats, warm_up=warm_up)
    load = load or ForeignLoad(threads)
    order = random.Random(seed)
    with tqdm(total=runs, desc="timing", unit="round", disable=not progress, leave=False) as bar:
        for call in calls.values():
            for _ in range(warm_up):
                call()
        kept, disturbed, foreign = [], [], []
        while len(kept) < runs and len(disturbed) < max(1, _MAX_REJECTED_SHARE * runs):
            window, cores, undisturbed = _window(calls, runs - len(kept), repeats, order, load, clock)
            if undisturbed:
                kept += window
                foreign.append((cores, len(window)))
                bar.update(len(window))
            else:
                disturbed += window
                bar.set_postfix_str(f"{len(disturbed)} thrown away: others use {cores:.1f} cores")
    quiet = len(kept) >= min(runs, _FEWEST_ROUNDS)
    if not quiet:
        logger.warning(
            f"other processes used the processor in {len(disturbed)} of {len(disturbed) + len(kept)} rounds; all "
            "rounds are kept, and the figures say little."
        )
        kept, disturbed, foreign = kept + disturbed, [], []
    seconds = {name: [times[name] for times in kept] for name in calls}
    return InterleavedTimes(reference, seconds, len(disturbed), _mean(foreign), quiet)


def _window(calls, most, repeats, order, load, clock) -> tuple[list[dict[str, float]], float | None, bool]:
    """Measure rounds until the window is long enough to judge; return them, the foreign load, and the judgement."""
    rounds: list[dict[str, float]] = []
    load.start()
    started = clock()
    while not rounds or (clock() - started < _WINDOW_SECONDS and len(rounds) < most):
        names = list(calls)
        order.shuffle(names)
        rounds.append({name: _turn(calls[name], repeats, clock) for name in names})
    cores = load.cores()
    return rounds, cores, not load.disturbs(cores, clock() - started)


def _turn(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    call()
    times = []
    for _ in range(repeats):
        before = clock()
        call()
        times.append(clock() - before)
    return statistics.median(times)


def _mean(foreign: list[tuple[float | None, int]]) -> float | None:
    if not foreign or any(cores is None for cores, _ in foreign):
        return None
    return sum(cores * rounds for cores, rounds in foreign) / sum(rounds for _, rounds in foreign)


def _check(calls: Mapping, reference: str | None, *, runs: int, repeats: int, warm_up: int) -> str:
    if not calls:
        raise ValueError("There is nothing to time.")
    for name, value, least in (("runs", runs, 1), ("repeats", repeats, 1), ("warm_up", warm_up, 0)):
        if value < least:
            raise ValueError(f"{name} is {value!r}; accepted: {least} and above.")
    reference = next(iter(calls)) if reference is None else reference
    if reference not in calls:
        raise ValueError(f"reference is {reference!r}; accepted: {', '.join(map(repr, calls))}.")
    return reference
