"""What a run leaves on disk: a folder that is checked before any work, and nothing half-written in it."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..files import LEFTOVERS, remove_leftovers, replace_folder, whole_file, write_problem

FLOAT = "float"
FLOAT_CHECKPOINTS = "float_checkpoints"
TRAINED = "trained"
PACKED = "packed"
RESULTS = "results.json"
RECIPE = "recipe.yaml"
TRAINING_LOG = "training_log.json"
OSCILLATION = "oscillation"  # the record that the trainer leaves, see hf_vaq.training.oscillation_record
_WRITTEN = (
    FLOAT,
    FLOAT_CHECKPOINTS,
    TRAINED,
    PACKED,
    RESULTS,
    RECIPE,
    TRAINING_LOG,
    OSCILLATION,
    "checkpoint-*",
    LEFTOVERS,
    "runs",
)


def claim_output_folder(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make `folder` ready for a run, before any work is done.

    Args:
        folder: created if it does not exist.
        resume: continue the run in the folder, if there is one: a run that was stopped before it wrote anything
            begins anew. What it left half-written is removed.
        overwrite: remove what an earlier run wrote (and nothing else).

    Raises:
        ValueError: the folder holds something and neither `resume` nor `overwrite` is given, or something that no run
            wrote; or it cannot be written.
    """
    entries = _entries(folder)
    if resume and overwrite:
        raise ValueError("resume_from_checkpoint and overwrite_output_dir exclude each other; give one of them.")
    if resume:
        remove_leftovers(folder)
        remove_leftovers(folder / FLOAT_CHECKPOINTS)
        entries = _entries(folder)
        if entries and RECIPE not in entries:
            raise ValueError(
                f"resume_from_checkpoint is set, but output_dir {str(folder)!r} holds {entries[0]!r} and no run to "
                "resume."
            )
    if overwrite:
        foreign = [name for name in entries if not any(fnmatch.fnmatch(name, pattern) for pattern in _WRITTEN)]
        if entries and RECIPE not in entries:
            foreign = entries
        if foreign:
            raise ValueError(
                f"output_dir {str(folder)!r} holds {foreign[0]!r}, which is not from a run and would not be removed. "
                "Choose another folder with --output_dir."
            )
        _remove_all(folder, entries)
    elif entries and not resume:
        raise ValueError(
            f"output_dir {str(folder)!r} is not empty. Choose another folder with --output_dir, continue the run in "
            "it with --resume_from_checkpoint true, or replace that run with --overwrite_output_dir true."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its name when the block ends well, and vanishes otherwise.

    Args:
        folder: must not exist or be empty, unless `replace` is given.
        replace: remove an earlier `folder` at the end.

    Raises:
        ValueError: the folder holds something, its parent cannot be written, or no more can be (the disk is full).
    """
    if _entries(folder) and not replace:
        raise ValueError(f"{str(folder)!r} is not empty; accepted: a folder that is empty or does not exist.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    except OSError as error:
        raise ValueError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from error
    try:
        # mkdtemp makes a private folder; a saved model should be as readable as any other new folder
        partial.chmod(0o777 & ~_umask())
        yield partial
        replace_folder(partial, folder)
    except (OSError, SafetensorError) as error:
        # safetensors and others report a full disk in words of their own.
        problem = write_problem(partial)
        if problem is None:
            raise
        raise ValueError(f"{str(folder)!r} cannot be written: {problem}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def weights_size(folder: Path) -> int:
    """Return the bytes of the safetensors files in a saved model's folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _entries(folder: Path) -> list[str]:
    """List a folder; empty where it does not exist.

    Raises:
        ValueError: it is a file, or it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{str(folder)!r} cannot be used as a folder: {error.strerror or error}.") from error


def _remove_all(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
