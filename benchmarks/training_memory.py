"""Peak memory of a training step, counted and as the operating system sees it, for `training_step.py`."""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile
from training_candidates import PEERS, REFERENCE, TrainingStep

MEMORY = (
    REFERENCE,
    "float32, compiled",
    "float32, compiled, bf16 autocast",
    "W4A4",
    "W4A4, regularized",
    "W4A4, regularized, compiled",
    "W4A4, regularized, compiled, bf16 autocast",
    "W2A2, regularized",
    "W4A4, not fused",
    *PEERS,
)
"""Candidates whose memory is measured: compiled ones take a minute each."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes.

    Attributes:
        persistent: of parameters, optimizer states and tracker.
        live: of all other tensors that exist at the same time, where a step has the most of them: activations,
            gradients and temporary tensors. This does not depend on the allocator; on a GPU it is what
            `torch.cuda.max_memory_allocated` would say.
        growth: of the resident memory, from just before a step (after unused memory was given back to the system) to
            the highest point in it: `live`, the holes between tensors, and what libraries allocate by themselves.
    """

    persistent: int
    live: int
    growth: int

    @property
    def tensors(self) -> int:
        """At the peak, counted."""
        return self.persistent + self.live

    @property
    def resident(self) -> int:
        """At the peak, by the operating system."""
        return self.persistent + self.growth


def step_memory(step: TrainingStep) -> StepMemory:
    """Measure some steps in a process that did nothing else."""
    for _ in range(2):
        step()
    growth = sorted(_growth(step) for _ in range(3))[1]
    return StepMemory(step.persistent_bytes(), _live(step), growth)


def _growth(step: TrainingStep) -> int:
    step.optimizer.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest value
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(match[1])


def _live(step: TrainingStep) -> int:
    step.optimizer.zero_grad()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        total += change.nbytes()
        highest = max(highest, total)
    return highest
