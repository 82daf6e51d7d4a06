"""One process at a time in a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".labeling.lock"
PATIENCE = 20.0
"""Seconds to wait for a process that is about to end, as one that is started anew by a supervisor has to."""


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keep every other process, and every other call, out of `folder`, as far as they ask here too.

    Raises:
        ValueError: somebody else is there, and still is after `PATIENCE`.
    """
    path = folder / LOCK
    if fcntl is None:
        yield
        return
    descriptor = _acquire(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        os.close(descriptor)


def _acquire(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it may have removed the file since it was opened: then it locks nothing.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise ValueError(
                    f"soft_labels {str(path.parent)!r} is being written by {holder}; wait until it has ended, or"
                    " choose another folder."
                ) from None
        os.close(descriptor)
        time.sleep(0.05)
