"""A short quantization-aware training of one setting of the quantizers, the same budget for every setting."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from torch.utils.data import Dataset
from transformers import PreTrainedModel, set_seed
from transformers.trainer_callback import PrinterCallback

from ..training import VaqTrainer, VaqTrainingArguments
from .switching import Part, Switchboard


@dataclass(frozen=True)
class TrainingBudget:
    """What every setting gets.

    Attributes:
        steps: optimizer steps; 0 for no training.
        batch_size: images a step.
        learning_rate: peak learning rate of the weights, which falls along a cosine to zero; scales learn ten times
            as fast.
        seed: of order and augmentation of the images, the same for every setting.
    """

    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"train_steps is {self.steps!r}; accepted: 0 (no training) and above.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size!r}; accepted: 1 and above.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate!r}; accepted: a finite number above 0.")


def train_setting(
    model: PreTrainedModel,
    board: Switchboard,
    parts: Iterable[Part],
    teacher: PreTrainedModel,
    images: Dataset,
    budget: TrainingBudget,
) -> None:
    """Train `model` in place with `parts` quantized and the rest in full precision.

    The loss is the soft cross-entropy with the full-precision model; the bin regularizer is off, because the budget is
    too short for its schedule.

    Args:
        model: quantized, calibrated, on its device.
        board: its switchboard.
        parts: what is quantized.
        teacher: the full-precision model.
        images: training images with "pixel_values" and "labels".
        budget: how long and how fast.
    """
    set_seed(budget.seed)
    with tempfile.TemporaryDirectory() as folder, board.quantizing(parts):
        arguments = VaqTrainingArguments(
            folder,
            max_steps=budget.steps,
            per_device_train_batch_size=budget.batch_size,
            learning_rate=budget.learning_rate,
            lr_scheduler_type="cosine",
            bin_regularization=0.0,
            oscillation_tracking=False,
            seed=budget.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        trainer = VaqTrainer(model, arguments, train_dataset=images, teacher=teacher)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
