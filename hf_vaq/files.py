"""Files and folders that appear whole or not at all, whatever interrupts the process that writes them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFTOVERS = ".*.partial-*"
"""Pattern of the names that unfinished folders and files have, beside those they will get."""
_OUR_ENDING = re.compile(r"\.partial-(save|\d+|[a-z0-9_]{8})")
"""How they end: a word of the checkpoints, the number of a process, or what `tempfile` draws."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that takes the name `path` once the block ends well and it is on the disk."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_folder(finished: Path, folder: Path) -> None:
    """Give a finished folder its name. An earlier folder of that name steps aside first and is removed last.

    At no moment does the name belong to a folder of which a part is missing, as it would while the earlier one is
    being removed.

    Args:
        finished: on the same file system as `folder`.
        folder: need not exist.
    """
    aside = _aside(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    finished.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; it loses its name before it loses its first file."""
    aside = _aside(folder)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path, pattern: str = LEFTOVERS) -> None:
    """Remove what processes that were killed have left in `folder`, and nothing else; nothing may be writing there."""
    for path in folder.glob(pattern):
        if is_leftover(path.name):
            remove(path)


def is_leftover(name: str) -> bool:
    """Tell the name of an unfinished file or folder from one that people choose, such as `.mine.partial-backup`."""
    dot = name.rfind(".partial-")
    return name.startswith(".") and dot > 0 and _OUR_ENDING.fullmatch(name, dot) is not None


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Wait until the files of a folder are on the disk: after a power cut a renamed folder would else be empty."""
    for root, _, names in os.walk(folder):
        for name in [*names, "."]:
            _flush(Path(root, name))


def write_problem(folder: Path, size: int = 1 << 20) -> str | None:
    """Why a file of `size` bytes cannot be written into `folder`; None if it can be.

    Libraries that write files report a full disk in words of their own, or as a failure of something else.
    """
    path = folder / f".probe.partial-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _aside(folder: Path) -> Path:
    # A name that nothing has: whatever else lies there is not ours.
    return folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
