"""What a run leaves on disk: a folder that is checked before any work, and nothing half-written in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..files import remove_leftovers, replace_folder, whole_file, write_problem
from .run_files import (
    FLOAT_CHECKPOINTS as FLOAT_CHECKPOINTS,
)
from .run_files import (
    RUN,
    RunRecord,
    files_below,
    foreign_files,
    remove_run,
    remove_unfinished,
)

FLOAT = "float"
TRAINED = "trained"
PACKED = "packed"
RESULTS = "results.json"
RECIPE = "recipe.yaml"
TRAINING_LOG = "training_log.json"
OSCILLATION = "oscillation"  # the record that the trainer leaves, see hf_vaq.training.oscillation_record
_REPLACED_ON_RESUME = (TRAINED, PACKED, OSCILLATION)


def check_output_folder(folder: Path, *, resume: bool = False, overwrite: bool = False) -> RunRecord | None:
    """Check whether a run may use `folder`; nothing is changed.

    Args:
        folder: need not exist.
        resume: continue the run in the folder, if there is one: a run that was stopped before it wrote anything
            begins anew.
        overwrite: the run in the folder is to be removed.

    Returns:
        The record of the run that lies there, if any.

    Raises:
        ValueError: the folder is one that people live in; it holds something and neither `resume` nor `overwrite` is
            given, or something that no run wrote and that would be removed; or it cannot be written.
    """
    _check_place(folder)
    if resume and overwrite:
        raise ValueError("resume_from_checkpoint and overwrite_output_dir exclude each other; give one of them.")
    entries = _entries(folder)
    record = RunRecord.read(folder) if RUN in entries else None
    foreign = foreign_files(record, folder) if resume or overwrite else []
    if overwrite and foreign:
        raise ValueError(
            f"output_dir {str(folder)!r} holds {foreign[0]!r}, which no run wrote and overwrite_output_dir would "
            "remove. Move it away, or choose another folder with --output_dir."
        )
    if resume and record is None and foreign:
        raise ValueError(
            f"resume_from_checkpoint is set, but output_dir {str(folder)!r} holds {foreign[0]!r} and no run to resume."
        )
    if resume:
        lost = [name for name in foreign if name.split("/")[0] in _REPLACED_ON_RESUME]
        if lost:
            raise ValueError(
                f"output_dir {str(folder)!r} holds {lost[0]!r}, which the run did not write and would remove when it "
                "goes on. Move it away."
            )
    elif entries and not overwrite:
        raise ValueError(
            f"output_dir {str(folder)!r} is not empty. Choose another folder with --output_dir, continue the run in "
            "it with --resume_from_checkpoint true, or replace that run with --overwrite_output_dir true."
        )
    _check_writable(folder)
    return record


def claim_output_folder(folder: Path, *, resume: bool = False, overwrite: bool = False) -> RunRecord | None:
    """Make `folder` ready for a run: what `check_output_folder` refuses is refused, then earlier things go.

    With `overwrite` the run that lies there is removed, file by file; with `resume` what it left half-written.

    Returns:
        The record of the run to go on with, if any.

    Raises:
        ValueError: see `check_output_folder`.
    """
    record = check_output_folder(folder, resume=resume, overwrite=overwrite)
    if record is not None and overwrite:
        remove_run(record)
        record = None
    elif record is not None:
        remove_unfinished(record)
    else:
        remove_leftovers(folder, f".{RUN}.partial-*")  # of a run that was killed before it had written anything
    folder.mkdir(parents=True, exist_ok=True)
    return record


def has_trained(record: RunRecord) -> bool:
    """Whether a run has left more than the account of how it began."""
    return not set(files_below(record.folder)) <= {RUN, RECIPE}


def abandon(record: RunRecord) -> None:
    """Remove what a run has written that failed before it trained anything, so that nothing blocks the next one."""
    if not has_trained(record):
        with contextlib.suppress(OSError):  # the trainer makes it before its first step
            (record.folder / FLOAT_CHECKPOINTS).rmdir()
        remove_run(record)


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


def _check_place(folder: Path) -> None:
    place = folder.expanduser().resolve()
    for name, there in (("the working directory", Path.cwd()), ("the home folder", Path("~").expanduser())):
        if place == there.resolve() or place in there.resolve().parents:
            raise ValueError(
                f"output_dir is {str(folder)!r}, which is {name} or holds it; accepted: a folder of its own, such as "
                "outputs/mine."
            )


def _check_writable(folder: Path) -> None:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} cannot be written: {error.strerror or error}.") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
