"""How much of the processor other processes take while something is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOLERATED_CORES = 0.1
"""Foreign load, in cores, that a measurement on all cores may see."""

TOLERATED_IDLE_SHARE = 0.25
"""Share of the cores that the measurement itself leaves idle which others may use besides."""

_TICK_SECONDS = 0.02
"""/proc/stat counts in ticks of 10 ms a core; two of them are no evidence."""


@dataclass(frozen=True)
class CpuUse:
    """Readings of three clocks, in seconds: wall time, processor time of the machine, and of this process."""

    wall: float
    machine: float
    process: float


def read_cpu_use(path: Path = Path("/proc/stat")) -> CpuUse | None:
    """Read the clocks now; None where the system does not tell (anything but Linux).

    Time that a hypervisor gave to another machine ("steal") counts as used: it is missing here just the same.
    """
    try:
        fields = path.read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    # proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user time already.
    ticks = [int(field) for field in fields[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    return CpuUse(time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), time.process_time())


class ForeignLoad:
    """Watches other processes, from one call of `start` to the next of `cores`.

    Args:
        threads: how many threads the measured work uses.
        cores: cores of the machine (None: ask the system).
        read: returns the clocks; see `read_cpu_use`.
    """

    def __init__(self, threads: int, cores: int | None = None, read: Callable[[], CpuUse | None] = read_cpu_use):
        self.tolerated = TOLERATED_CORES + TOLERATED_IDLE_SHARE * max(0, (cores or os.cpu_count() or 1) - threads)
        self._read = read
        self._started: CpuUse | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._started = self._read()

    def cores(self) -> float | None:
        """Return the cores that others used since `start`, on average; None where the system does not tell."""
        now, before = self._read(), self._started
        if now is None or before is None:
            return None
        foreign = (now.machine - before.machine) - (now.process - before.process)
        return max(0.0, foreign) / max(now.wall - before.wall, 1e-9)

    def disturbs(self, cores: float | None, seconds: float) -> bool:
        """Return whether that foreign load over that many seconds makes a measurement worthless.

        A load of one core slows work that needs all cores by far more than its share: the threads wait for each other.
        """
        return cores is not None and cores > self.tolerated + _TICK_SECONDS / max(seconds, 1e-9)
