"""Checkpoints that are complete as soon as they have their name."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..files import flush_folder, remove_folder, remove_leftovers, replace_folder, write_problem
from ..processes import on_main_process
from ..soft_labels.store import file_checksum

MANIFEST_NAME = "checkpoint.json"
"""File of a checkpoint that lists all its other files with their sizes in bytes and CRC-32."""
_OPTIMIZERS = "optimizer", "global_step"
"""How the names of an optimizer's file, of its folder where it is sharded, and of DeepSpeed's folder begin."""
_LEFTOVERS = f".{PREFIX_CHECKPOINT_DIR}-*.partial-*"

logger = logging.get_logger(__name__)


class CheckpointError(OSError):
    """A checkpoint could not be written; those written before are untouched."""


class CompleteCheckpoints(Trainer):
    """A Trainer that can be killed at any moment, and then resumed from a checkpoint of which no part is missing.

    A checkpoint is written under a name of its own, `.checkpoint-<step>.partial-save`, and renamed to
    `checkpoint-<step>` when every process has written its part and all of it is on the disk. Older checkpoints are
    removed after that, and lose their name first. A manifest in the checkpoint tells whether it is still whole.
    Several machines have to share the folder, as for `transformers.Trainer`, or set `save_on_each_node`.
    """

    _staging: Path | None = None
    _push_is_due = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; `True` stands for the last complete checkpoint in the output folder.

        Raises:
            ValueError: if there is none, or the checkpoint that is named is not complete.
            CheckpointError: if a checkpoint cannot be written.
        """

        def find() -> str | None:
            remove_leftovers(Path(self.args.output_dir), _LEFTOVERS)
            if resume_from_checkpoint is True:
                found = last_complete_checkpoint(self.args.output_dir)
                if found is None:
                    newest = _checkpoints(Path(self.args.output_dir))[-1:]
                    why = "".join(f"; the newest, {path.name}: {missing_part(path)}" for path in newest)
                    raise ValueError(
                        f"output_dir {self.args.output_dir!r} holds no complete checkpoint to resume{why}."
                    )
                return found
            if not resume_from_checkpoint:
                return None
            missing = missing_part(resume_from_checkpoint)
            if missing is not None:
                raise ValueError(
                    f"resume_from_checkpoint is {os.fspath(resume_from_checkpoint)!r}, which is not complete"
                    f" ({missing}); accepted: true, for the last complete checkpoint, or another one."
                )
            return os.fspath(resume_from_checkpoint)

        return super().train(on_main_process(find), *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        checkpoint = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = checkpoint.with_name(f".{checkpoint.name}.partial-save")
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging, self._push_is_due = staging, False
        try:
            super()._save_checkpoint(model, trial)
            self._name_best_checkpoint(run)
            # Every process writes the states of its random number generators.
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _finish(staging / checkpoint.name, self.state, self.args.world_size)
                replace_folder(staging / checkpoint.name, checkpoint)
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch reports a failure to write a file as a RuntimeError, without the reason.
            problem = write_problem(staging if staging.is_dir() else run)
            if problem is None and isinstance(error, RuntimeError):
                raise
            problem = problem or getattr(error, "strerror", None) or str(error)
            raise CheckpointError(_describe(checkpoint, problem)) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero():
            # Where machines do not share the folder, what this one's processes wrote is of no use without the rest.
            shutil.rmtree(staging, ignore_errors=True)
        if self._push_is_due:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            remove_old_checkpoints(checkpoint, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            # An upload runs in the background: it has to begin when the folder has its name.
            self._push_is_due = True

    def _name_best_checkpoint(self, run: Path) -> None:
        # The base class looks for it beside the checkpoint that is being written.
        step = self.state.best_global_step
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step and (step == self.state.global_step or best.is_dir()):
            self.state.best_model_checkpoint = str(best)


def last_complete_checkpoint(run: str | os.PathLike) -> str | None:
    """Path of the checkpoint with the most steps that is complete, in a run's folder; None if there is none."""
    for checkpoint in reversed(_checkpoints(Path(run))):
        missing = missing_part(checkpoint)
        if missing is None:
            return str(checkpoint)
        logger.warning(f"{checkpoint} is not complete ({missing}); the checkpoint before it is taken.")
    return None


def missing_part(checkpoint: str | os.PathLike) -> str | None:
    """What a checkpoint lacks to be resumed, or which of its files is damaged, in words; None if it is complete.

    Every file is read and compared with its checksum. A checkpoint that another Trainer wrote has no manifest; its
    state, optimizer and schedule must be there.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        files = {str(name): (int(file["size"]), int(file["crc32"])) for name, file in manifest.items()}
    except FileNotFoundError:
        files = {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST_NAME} cannot be read"
    for name, (size, checksum) in files.items():
        path = folder / name
        if not path.is_file():
            return f"it lacks {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
        if file_checksum(path) != checksum:
            return f"{name} is damaged: its checksum is not the one in {MANIFEST_NAME}"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"it has no {TRAINER_STATE_NAME}"
    missing = [] if (folder / SCHEDULER_NAME).is_file() else [SCHEDULER_NAME]
    if not any(path.name.startswith(_OPTIMIZERS) for path in folder.iterdir()):
        missing = ["optimizer", *missing]
    if missing:
        return f"it has no {' and no '.join(missing)}: a run cannot go on from weights alone (save_only_model)"
    return None


def remove_old_checkpoints(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the checkpoints beside `newest` of the fewest steps, until `limit` are left.

    Args:
        newest: the one written last, which stays.
        limit: None and 0 keep all.
        best: another one that stays, if any.
    """
    if not limit or limit <= 0:
        return
    kept = {newest.resolve()} | ({Path(best).resolve()} if best is not None else set())
    checkpoints = _checkpoints(newest.parent)
    old = [checkpoint for checkpoint in checkpoints if checkpoint.resolve() not in kept]
    for checkpoint in old[: max(0, len(checkpoints) - limit)]:
        remove_folder(checkpoint)


def _finish(checkpoint: Path, state: Any, processes: int) -> None:
    # Again, now that it names the best checkpoint as it will be called.
    state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
    files = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "crc32": file_checksum(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    manifest = {"format_version": 1, "step": state.global_step, "processes": processes, "files": files}
    (checkpoint / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    flush_folder(checkpoint)


def _describe(checkpoint: Path, problem: str) -> str:
    complete = last_complete_checkpoint(checkpoint.parent)
    way_out = (
        "No checkpoint was written before it"
        if complete is None
        else f"{Path(complete).name} is complete: make room and resume from it"
    )
    free = shutil.disk_usage(checkpoint.parent).free
    return (
        f"{checkpoint.name} cannot be written to {str(checkpoint.parent)!r}: {problem} ({free / 1e6:,.1f} MB are"
        f" free). {way_out}."
    )


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders by ascending number of steps."""
    found = []
    for path in run.iterdir() if run.is_dir() else ():
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match.group(1)), path))
    return [path for _, path in sorted(found)]
