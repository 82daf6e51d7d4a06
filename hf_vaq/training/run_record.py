"""What a trainer leaves on its model, so that the packed model's card can say how it was trained."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback

_ATTRIBUTE = "vaq_run_record"


@dataclass(frozen=True)
class RunRecord:
    """How a model was trained.

    Attributes:
        image_processor: that made its images; None if the trainer was given none.
        arguments: the fields of the training arguments that differ from their defaults, as plain values.
        teacher: name of the teacher, "stored soft labels of NAME", or None.
        base_model: name that the model was loaded by; None for one that was built.
        log: what the trainer logged, entry by entry.
    """

    image_processor: Any
    arguments: Mapping[str, Any]
    teacher: str | None
    base_model: str | None
    log: Sequence[Mapping[str, Any]]


class RunRecorder(TrainerCallback):
    """Leaves a `RunRecord` on the model when training has ended; `hf_vaq.pack` takes it along.

    Args:
        teacher: name of the teacher, if there is one.
    """

    def __init__(self, teacher: str | None):
        self.teacher = teacher

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: nn.Module, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Leave the record."""
        record_run(model, args, state, self.teacher, processing_class)


def record_run(model: nn.Module, args: Any, state: Any, teacher: str | None, image_processor: Any) -> None:
    """Leave the record on `model`, as it is now."""
    record = RunRecord(
        image_processor=image_processor,
        arguments=_changed(args),
        teacher=teacher,
        base_model=model.config._name_or_path or None,
        log=copy.deepcopy(state.log_history),
    )
    setattr(model, _ATTRIBUTE, record)


def run_record_of(model: nn.Module) -> RunRecord | None:
    """The record on `model`, if a trainer left one."""
    return getattr(model, _ATTRIBUTE, None)


def hand_on_run_record(source: nn.Module, target: nn.Module) -> None:
    """Leave the record on `source`, if there is one, on `target` too."""
    record = run_record_of(source)
    if record is not None:
        setattr(target, _ATTRIBUTE, record)


def _changed(args: Any) -> dict[str, Any]:
    """Plain values of the arguments that decide the result and were changed, the seed and length in any case."""
    always = ("seed", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "bin_regularization")
    values = args.to_dict()  # tokens are masked in it
    changed = {}
    for field in dataclasses.fields(args):
        value = values.get(field.name)
        plain = value is None or isinstance(value, (bool, int, float, str))
        if plain and field.init and (field.name in always or value != field.default):
            changed[field.name] = value
    return changed


def name_of_teacher(teacher: Any, soft_labels: Any) -> str | None:
    """What a card calls the teacher: the name that it was loaded by, or the class of one that was built."""
    if soft_labels is not None:
        settings = getattr(soft_labels, "settings", None)
        return f"stored soft labels of {settings.teacher if settings else soft_labels}"
    if teacher is None or isinstance(teacher, (str, os.PathLike)):
        return None if teacher is None else str(teacher)
    return teacher.config._name_or_path or type(teacher).__name__
