"""The teacher: any image-classification model, asked in the student's terms."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from .preprocessing import ImageNormalization, PixelConversion, measure_normalization


class Teacher(nn.Module):
    """A frozen model that takes the student's pixel values and answers with logits in the student's label order.

    Args:
        model: an image-classification model; it is put in evaluation mode and its parameters are frozen.
        conversion: from the student's pixel values to the model's.
        label_order: for every student label the model's index of it, or None where they agree.
    """

    def __init__(self, model: PreTrainedModel, conversion: nn.Module, label_order: list[int] | None = None):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.conversion = conversion
        order = None if label_order is None else torch.tensor(label_order)
        self.register_buffer("label_order", order, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) as the student gets them, to logits (batch, labels of the student)."""
        logits = self.model(pixel_values=self.conversion(pixel_values)).logits
        return logits if self.label_order is None else logits.index_select(-1, self.label_order)


def build_teacher(
    teacher: PreTrainedModel | str | os.PathLike,
    student: PreTrainedModel,
    student_processor: Any = None,
    teacher_processor: Any = None,
) -> Teacher:
    """Load a teacher if need be, check it against the student, and connect the two.

    The size of the teacher's images is that of its processor or, if that keeps the size of an image, of its
    configuration; if neither says, it gets the student's images in their size. Crops are not repeated: the teacher
    sees exactly what the student sees.

    Args:
        teacher: a model, or a Hub id or folder of one, which then is loaded with its own image processor.
        student: the model that is trained.
        student_processor: image processor that made the student's pixel values.
        teacher_processor: image processor of the teacher. If not given, the one saved beside the teacher is used, or
            the one a timm model carries in its configuration; a model in memory without one shares the student's.

    Raises:
        ValueError: if the labels differ (both sets are named), the number of channels differs, the teacher is the
            student itself, or a processor is missing.
    """
    if isinstance(teacher, str | os.PathLike):
        location = os.fspath(teacher)
        teacher = AutoModelForImageClassification.from_pretrained(location)
        if teacher_processor is None:
            teacher_processor = saved_processor(location, teacher.config)
    elif teacher_processor is None:
        teacher_processor = timm_processor(teacher.config)
    if teacher is student:
        raise ValueError("teacher and student are the same object; pass a copy: the teacher must not change.")
    label_order = match_labels(student.config, teacher.config)
    channels = getattr(student.config, "num_channels", 3)
    teacher_channels = getattr(teacher.config, "num_channels", channels)
    if teacher_channels != channels:
        raise ValueError(
            f"the teacher takes images of {teacher_channels} channels, expected the student's {channels}."
        )
    conversion = _conversion(teacher.config, student_processor, teacher_processor, channels)
    return Teacher(teacher, conversion, label_order)


def match_labels(student: PretrainedConfig, teacher: PretrainedConfig) -> list[int] | None:
    """For every label of the student the teacher's index of the label of the same name; None if the orders agree.

    Raises:
        ValueError: if the names differ; the message names them. Or if a name stands for two labels and the orders
            differ, so that nobody can say which is which.
    """
    ours, theirs = ([config.id2label[i] for i in range(config.num_labels)] for config in (student, teacher))
    if ours == theirs:
        return None
    missing, extra = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    if missing or extra:
        raise ValueError(
            f"teacher and student have different labels: the student has {len(ours)}, the teacher {len(theirs)};"
            f" only the student has {_some(missing)}; only the teacher has {_some(extra)}. Expected the same names, in"
            " any order. If they mean the same classes, give both models the same config.id2label and label2id."
        )
    repeated = {name: count for name, count in Counter(ours).items() if count > 1}
    if repeated:
        raise ValueError(
            f"teacher and student have their labels in different orders, and {_some(Counter(repeated))} stand for more"
            " than one label: expected unique names in config.id2label, or the same order."
        )
    index = {name: i for i, name in enumerate(theirs)}
    return [index[name] for name in ours]


def _some(names: Counter, limit: int = 5) -> str:
    if not names:
        return "none"
    shown = ", ".join(repr(name) for name in list(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def _conversion(
    config: PretrainedConfig, student_processor: Any, teacher_processor: Any, channels: int
) -> PixelConversion:
    size = getattr(config, "image_size", None)
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
    if teacher_processor is None or teacher_processor is student_processor:
        shared = ImageNormalization(tuple(range(channels)), (1.0,) * channels, (0.0,) * channels, None)
        return PixelConversion(shared, shared, size)
    if student_processor is None:
        raise ValueError(
            "the teacher has an image processor and the student has none: pass the student's to VaqTrainer as"
            " processing_class, so that its normalisation can be undone for the teacher."
        )
    have, want = (measure_normalization(processor, channels) for processor in (student_processor, teacher_processor))
    return PixelConversion(have, want, size if want.size is None else want.size)


def timm_processor(config: PretrainedConfig) -> Any:
    """The image processor that a timm model describes in its own configuration; None for other models."""
    if config.model_type != "timm_wrapper" or not getattr(config, "pretrained_cfg", None):
        return None
    from transformers.models.timm_wrapper import TimmWrapperImageProcessor

    return TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)


def saved_processor(location: str, config: PretrainedConfig) -> Any:
    """The image processor saved beside a model, or the one a timm model carries in its configuration.

    Raises:
        ValueError: there is none.
    """
    processor = timm_processor(config)
    if processor is not None:
        return processor
    try:
        return AutoImageProcessor.from_pretrained(location)
    except OSError as error:
        raise ValueError(
            f"teacher {location!r} has no image processor (preprocessor_config.json): pass teacher_processor=."
        ) from error
