"""`run.json`: what a run was made of and which files it wrote, so that those and no others are ever removed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import TrainerCallback

from ..files import is_leftover, remove, write_json
from ..training.checkpoints import MANIFEST_NAME
from ..training.oscillation_record import RECORD_FOLDER, RECORD_METADATA, TABLES

RUN = "run.json"
FLOAT_CHECKPOINTS = "float_checkpoints"
_CHECKPOINT = re.compile(rf"({FLOAT_CHECKPOINTS}/)?checkpoint-\d+")
_UNFINISHED = re.compile(
    rf"({FLOAT_CHECKPOINTS}/)?\.(checkpoint-\d+|float|trained|packed|{RECORD_FOLDER}|probe|\w+\.(json|yaml))\.partial-\w+"
)
_ALWAYS = (
    RUN,
    "recipe.yaml",
    "results.json",
    "training_log.json",
    *(f"{RECORD_FOLDER}/{table}.parquet" for table in TABLES),
    f"{RECORD_FOLDER}/{RECORD_METADATA}",
)


@dataclass
class RunRecord:
    """What `run.json` holds.

    Attributes:
        folder: output folder of the run.
        recipe: the fields that decide what is trained, see `hf_vaq.job.same_run`.
        inputs: what images, models and labels were, by name.
        files: paths relative to the folder of what was written there, or is about to be.
    """

    folder: Path
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    files: list[str] = field(default_factory=lambda: list(_ALWAYS))

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Read the record of the run in `folder`; None if there is none.

        Raises:
            ValueError: it is damaged.
        """
        path = folder / RUN
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record = cls(folder, content["recipe"], content["inputs"], content["files"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} cannot be read ({type(error).__name__}: {error}).") from error
        types = (isinstance(record.recipe, dict), isinstance(record.inputs, dict), isinstance(record.files, list))
        if not all(types) or not all(isinstance(name, str) for name in record.files):
            raise ValueError(f"{str(path)!r} is not what a run writes.")
        return record

    def write(self) -> None:
        """Write `run.json`, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {name.name: getattr(self, name.name) for name in dataclasses.fields(self) if name.name != "folder"}
        write_json(self.folder / RUN, {"format_version": 1, **content})

    def add(self, names: Iterable[str]) -> None:
        """Note files before they get their names, so that a kill in between leaves none that is not on the list."""
        new = sorted(set(names) - set(self.files))
        if new:
            self.files += new
            self.write()

    def written(self) -> set[str]:
        """Paths of all files of the run: those noted, and what its checkpoints list of themselves."""
        found = set(self.files)
        for parent in (self.folder, self.folder / FLOAT_CHECKPOINTS):
            for checkpoint in parent.glob("checkpoint-*"):
                place = checkpoint.relative_to(self.folder).as_posix()
                # Of a checkpoint whose list cannot be read nobody knows what belongs to it.
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    if _CHECKPOINT.fullmatch(place):
                        files = json.loads((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
                        found |= {f"{place}/{name}" for name in [MANIFEST_NAME, *files]}
        return found


def files_below(folder: Path) -> Iterator[str]:
    """Yield every file and link below a folder, as paths relative to it; of what a kill left unfinished the top."""
    for root, folders, files in os.walk(folder):
        place = Path(root).relative_to(folder)
        for name in list(folders):
            path = (place / name).as_posix()
            if _is_unfinished(path) or (folder / path).is_symlink():
                folders.remove(name)
                files.append(name)
        yield from sorted((place / name).as_posix() for name in files)


def foreign_files(record: RunRecord | None, folder: Path) -> list[str]:
    """List what the run did not write."""
    written = set() if record is None else record.written()
    return [name for name in files_below(folder) if name not in written and not _is_unfinished(name)]


def remove_run(record: RunRecord) -> None:
    """Remove what the run wrote; `run.json` last, so that what a kill leaves is still known."""
    remove_files(record, lambda name: name != RUN)
    (record.folder / RUN).unlink()


def remove_files(record: RunRecord, chosen: Callable[[str], bool]) -> None:
    """Remove those files of the run that are `chosen` by their path, and the folders that become empty by it."""
    written = record.written()
    names = [name for name in files_below(record.folder) if (name in written or _is_unfinished(name)) and chosen(name)]
    for name in names:
        remove(record.folder / name)
    parents = {parent for name in names for parent in PurePosixPath(name).parents if parent.name}
    for parent in sorted(parents, key=lambda parent: len(parent.parts), reverse=True):
        with contextlib.suppress(OSError):  # something that no run wrote is left in it
            (record.folder / parent).rmdir()


def remove_unfinished(record: RunRecord) -> None:
    """Remove what a run that was killed has left half-written."""
    remove_files(record, _is_unfinished)


class NoteLogs(TrainerCallback):
    """Notes the files that loggers such as TensorBoard open under `runs/` when training begins."""

    def __init__(self, record: RunRecord, output_dir: str):
        self.record = record
        self.place = Path(output_dir, "runs")
        self.before = set(files_below(self.place))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare with what was there when the trainer was made."""
        if state.is_world_process_zero:
            prefix = self.place.relative_to(self.record.folder).as_posix()
            self.record.add(f"{prefix}/{name}" for name in set(files_below(self.place)) - self.before)


def _is_unfinished(name: str) -> bool:
    return is_leftover(PurePosixPath(name).name) and _UNFINISHED.fullmatch(name) is not None
