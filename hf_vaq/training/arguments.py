"""Arguments of `VaqTrainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from transformers import TrainingArguments

from ..soft_labels.recovery import RECOVERIES

SCALE_LEARNING_RATE_FACTOR = 10.0
"""Default learning rate of the scales, in units of `learning_rate`: they are learned in the logarithmic domain, where
a step of size lr is a relative change by lr, and a scale has further to go than a weight."""


@dataclass
class VaqTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, and what quantization-aware training with distillation adds to them.

    The defaults are those of variation-aware quantization (arXiv 2307.00331) and of its published code.
    `data_seed` defaults to `seed`, so that the order of the images does not depend on what ran before.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """

    distillation_temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature of the soft cross-entropy between teacher and student. Positive."},
    )
    hard_label_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight w of the hard-label cross-entropy when there is a teacher: the loss is"
            " (1 - w) * soft + w * hard. From 0 to 1. Without a teacher the loss is the hard-label cross-entropy."
        },
    )
    bin_regularization: float = field(
        default=0.01,
        metadata={"help": "Weight lambda of the bin regularizer at the end of training. 0 turns it off."},
    )
    bin_regularization_start: float = field(
        default=0.25,
        metadata={"help": "Fraction of training after which lambda rises from 0, along a cosine. From 0 to below 1."},
    )
    scale_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of quantizer scales and offsets (no weight decay); follows the same schedule as"
            f" learning_rate. If not given: {SCALE_LEARNING_RATE_FACTOR:g} * learning_rate."
        },
    )
    fuse_quantizers: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to fuse quantizers with their layers, see hf_vaq.set_fusion. If not given the model"
            " keeps its choice, which is by its size if nobody made another."
        },
    )
    drop_path: float | None = field(
        default=None,
        metadata={
            "help": "Stochastic depth: probability of dropping a branch of the last transformer block in training,"
            " falling linearly to 0 in the first. From 0 to below 1. If not given the model keeps its own."
        },
    )
    calibration_batches: int = field(
        default=8,
        metadata={
            "help": "Training batches, chosen at random with the seed, that set the activation scales before a"
            " quantized model that has none is trained. At least 1."
        },
    )
    oscillation_tracking: bool = field(
        default=True,
        metadata={"help": "Whether to follow how often the code of each weight flips back, and to log the share."},
    )
    oscillation_momentum: float = field(
        default=0.001,
        metadata={"help": "Momentum of the moving average of oscillations per step. Above 0, to 1."},
    )
    oscillation_threshold: float = field(
        default=0.005,
        metadata={"help": "Frequency (oscillations per step) above which a weight oscillates. From 0 to below 1."},
    )

    num_crops: int = field(
        default=4,
        metadata={
            "help": "With soft_labels: crops of an image that enter a batch together. The image is decoded once for"
            " all of them. At least 1; per_device_train_batch_size, counted in crops, is a multiple of it."
        },
    )
    soft_label_recovery: str = field(
        default="smoothing",
        metadata={
            "help": "With soft_labels of the top k classes: what the others get. 'smoothing' spreads the rest of the"
            " probability evenly over them, 'renormalization' gives them nothing."
        },
    )

    def __post_init__(self) -> None:
        _check_inherited(self)
        _check_number("distillation_temperature", self.distillation_temperature, "a positive number", lambda x: x > 0)
        _check_number("hard_label_weight", self.hard_label_weight, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        _check_number("bin_regularization", self.bin_regularization, "a number, 0 or more", lambda x: x >= 0)
        _check_number(
            "bin_regularization_start",
            self.bin_regularization_start,
            "a number from 0 to below 1",
            lambda x: 0 <= x < 1,
        )
        if self.scale_learning_rate is not None:
            _check_number(
                "scale_learning_rate", self.scale_learning_rate, "a number, 0 or more, or None", lambda x: x >= 0
            )
        _check_number(
            "oscillation_momentum", self.oscillation_momentum, "a number above 0, to 1", lambda x: 0 < x <= 1
        )
        _check_number(
            "oscillation_threshold", self.oscillation_threshold, "a number from 0 to below 1", lambda x: 0 <= x < 1
        )
        if self.drop_path is not None:
            _check_number("drop_path", self.drop_path, "a number from 0 to below 1, or None", lambda x: 0 <= x < 1)
        for name in ("calibration_batches", "num_crops"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}={value!r}: expected an integer, 1 or more.")
        if self.soft_label_recovery not in RECOVERIES:
            raise ValueError(f"soft_label_recovery={self.soft_label_recovery!r}: expected {' or '.join(RECOVERIES)}.")
        if self.fuse_quantizers is not None and not isinstance(self.fuse_quantizers, bool):
            raise ValueError(f"fuse_quantizers={self.fuse_quantizers!r}: expected True, False or None.")
        if not isinstance(self.oscillation_tracking, bool):
            raise ValueError(f"oscillation_tracking={self.oscillation_tracking!r}: expected True or False.")
        super().__post_init__()
        if self.data_seed is None:
            self.data_seed = self.seed

    def resolved_scale_learning_rate(self) -> float:
        """Peak learning rate of scales and offsets: `scale_learning_rate`, or its default from `learning_rate`."""
        if self.scale_learning_rate is not None:
            return self.scale_learning_rate
        return SCALE_LEARNING_RATE_FACTOR * self.learning_rate


_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
_SEEDS = ("seed", "data_seed")


def _check_inherited(arguments: TrainingArguments) -> None:
    """Refuse inherited numbers that are not finite, or negative where the default is not (`max_steps` is -1)."""
    for field_ in fields(TrainingArguments):
        name, value = field_.name, getattr(arguments, field_.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name in _AT_LEAST_ONE:
            _check_number(name, value, "a whole number, 1 or more", lambda x: x >= 1 and x == int(x))
        elif name in _BELOW_ONE:
            _check_number(name, value, "a number from 0 to below 1", lambda x: 0 <= x < 1)
        elif name in _SEEDS:
            _check_number(name, value, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32 and x == int(x))
        elif isinstance(field_.default, int | float) and field_.default < 0:
            _check_number(name, value, "a finite number", lambda x: True)
        else:
            _check_number(name, value, "a number, 0 or more", lambda x: x >= 0)


def _check_number(name: str, value: object, accepted: str, is_accepted) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and is_accepted(value)):
        raise ValueError(f"{name}={value!r}: expected {accepted}.")
