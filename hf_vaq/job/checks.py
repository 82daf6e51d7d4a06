"""What can be known of a run's models before anything is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from ..config import QuantConfig
from ..data.transforms import input_format
from ..integration.plan import plan_quantization
from ..training import VaqTrainer, VaqTrainingArguments
from ..training.teacher import build_teacher, saved_processor
from .models import load_model


def check_quantization(config: PretrainedConfig, quantization: QuantConfig) -> None:
    """Make the model without memory for its weights, and plan its quantization.

    Raises:
        ValueError: the configuration makes no model, its family is not supported, or a pattern matches no module.
    """
    plan_quantization(_without_weights(config), quantization)


def check_teacher(teacher: str | Path, config: PretrainedConfig, processor: Any) -> None:
    """Load a teacher, compare it with the student, and let it answer one black image.

    Args:
        teacher: Hub id or folder.
        config: of the student.
        processor: image processor of the student.

    Raises:
        ValueError: there is no such model, its labels or channels are not the student's, or it cannot answer.
    """
    made = input_format(processor)
    try:
        model = load_model(teacher)
        asked = build_teacher(model, _without_weights(config), processor, saved_processor(str(teacher), model.config))
        logits = asked(torch.zeros(1, getattr(config, "num_channels", 3), made.height, made.width))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"teacher is {str(teacher)!r}, which cannot teach this model: {error}") from error
    if logits.shape[-1] != config.num_labels or not logits.isfinite().all():
        raise ValueError(
            f"teacher is {str(teacher)!r}, which answers a black image with {logits.shape[-1]} logits "
            f"({int(logits.isfinite().sum())} of them finite); accepted: {config.num_labels} finite ones."
        )


def check_training(training: VaqTrainingArguments) -> None:
    """Make optimizer, schedule and loggers as training will, for one number.

    Raises:
        ValueError: one of them cannot be made; the message names the fields it is made from.
    """

    def schedule() -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
        scheduler = get_scheduler(
            training.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=training.lr_scheduler_kwargs
        )
        optimizer.step()
        scheduler.step() if training.lr_scheduler_type != "reduce_lr_on_plateau" else None

    made = {
        "optim, optim_args": lambda: VaqTrainer.get_optimizer_cls_and_kwargs(training),
        "lr_scheduler_type, lr_scheduler_kwargs": schedule,
        "report_to": lambda: get_reporting_integration_callbacks(training.report_to),
    }
    for fields, make in made.items():
        try:
            make()
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, ImportError, RuntimeError) as error:
            values = ", ".join(f"{name} {getattr(training, name)!r}" for name in fields.split(", "))
            raise ValueError(f"training cannot begin with {values}: {error}") from error


def check_apart(folder: Path, inputs: dict[str, str | None]) -> None:
    """Refuse to remove a run that the new one reads from.

    Args:
        folder: that would be overwritten.
        inputs: names or paths, by field.

    Raises:
        ValueError: one of them lies in the folder.
    """
    for name, given in inputs.items():
        place = None if given is None else Path(given).expanduser()
        if place is not None and place.exists() and folder.resolve() in (place.resolve(), *place.resolve().parents):
            raise ValueError(
                f"{name} is {given!r}, which lies in output_dir {str(folder)!r}, and overwrite_output_dir would "
                "remove it. Choose another folder with --output_dir."
            )


def new_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return a model with new weights.

    Raises:
        ValueError: the configuration makes none.
    """
    config = copy.deepcopy(config)
    # Where a model type has several classes (DeiT), transformers fails for None and takes the first for an empty list.
    config.architectures = config.architectures or []
    try:
        return AutoModelForImageClassification.from_config(config)
    except Exception as error:
        # A wrong size or name in a configuration surfaces as an error of any type, deep in the model.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the configuration of type {config.model_type!r} makes no model ({reason}).") from error


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return new_model(config)
