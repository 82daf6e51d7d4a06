"""What a script that times something needs settled before its process starts."""

from __future__ import annotations

import os
import sys

ALLOCATOR = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"


def settle_environment(threads: int) -> None:
    """Start this script again with what the C library and OpenMP read only at their start.

    With its own mmap threshold glibc's allocator gives large blocks back to the system or keeps them, depending on
    what the process did before, so that the same model has two speeds; with a fixed one it keeps them.

    Args:
        threads: of OpenMP.
    """
    wanted = {"OMP_NUM_THREADS": str(threads)}
    if sys.platform == "linux":
        wanted["GLIBC_TUNABLES"] = ALLOCATOR
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
