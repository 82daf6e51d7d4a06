"""Sensitivity: how much each group of modules suffers from quantization, alone and among all others.

Source: section 4 of "Quantization Variation" (arXiv 2307.00331), which quantizes everything except one kind of module
and compares top-1. Here each group is also quantized alone, and loss and noise in the logits are measured as well.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..config import QuantConfig
from ..machine import choose_device
from .cache import BatchCache, digest
from .groups import Group, find_groups
from .measuring import Measured, SettingsMeasurement, measure_model
from .preparing import Batch, QuantizedCopies, batches_of
from .short_training import TrainingBudget, train_setting
from .switching import Part, Switchboard

if TYPE_CHECKING:
    import pandas

FULL_PRECISION = "full precision"
EVERYTHING = "everything quantized"
ONLY = "only this group quantized"
ALL_BUT = "all but this group quantized"
_CACHE_VERSION = 1


@dataclass(frozen=True)
class SensitivityRow:
    """One measurement.

    Attributes:
        group: name of the group; empty for the full-precision model and the one quantized throughout.
        setting: `FULL_PRECISION`, `EVERYTHING`, `ONLY` or `ALL_BUT`.
        train_steps: steps of quantization-aware training before it was measured; 0 after calibration alone.
        top1: top-1 accuracy in percent.
        loss: mean cross-entropy with the labels, in nats.
        snr_db: signal-to-noise ratio of the logits, in decibels; None for the full-precision model itself.
        forward_seconds: time of the forward passes; 0 for trained settings.
    """

    group: str
    setting: str
    train_steps: int
    top1: float
    loss: float
    snr_db: float | None
    forward_seconds: float


@dataclass(frozen=True)
class SensitivityResult:
    """What `analyze_sensitivity` measured.

    Attributes:
        rows: full precision first, then everything quantized, then two rows a group; trained ones at the end.
        images: number of images measured on.
        config: what "quantized" means, the fields of `QuantConfig`.
        budget: the training of the trained rows.
    """

    rows: tuple[SensitivityRow, ...]
    images: int
    config: dict[str, Any]
    budget: TrainingBudget

    def row(self, setting: str, group: str = "", train_steps: int = 0) -> SensitivityRow:
        """The row of a setting.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.setting, row.group, row.train_steps) == (setting, group, train_steps):
                return row
        raise KeyError((setting, group, train_steps))

    def table(self) -> pandas.DataFrame:
        """One line a row, with `top1_change`: top-1 less that of full precision, in points.

        Settings with all but one group quantized have `top1_recovered` as well: top-1 less that of the model that is
        quantized throughout, with the same training, in points.
        """
        import pandas

        everything = {row.train_steps: row.top1 for row in self.rows if row.setting == EVERYTHING}
        start = self.row(FULL_PRECISION).top1
        lines = [
            dataclasses.asdict(row)
            | {
                "top1_change": row.top1 - start,
                "top1_recovered": row.top1 - everything[row.train_steps] if row.setting == ALL_BUT else None,
            }
            for row in self.rows
        ]
        return pandas.DataFrame(lines)


def analyze_sensitivity(
    model: PreTrainedModel,
    images: Dataset,
    calibration: Dataset,
    config: QuantConfig,
    *,
    groups: Sequence[str] | None = None,
    budget: TrainingBudget | None = None,
    train_images: Dataset | None = None,
    batch_size: int = 50,
    device: str | torch.device | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> SensitivityResult:
    """Quantize every group alone, and everything but it, and measure what that does to the model.

    Scales come from post-training initialisation: weights by least squares, activations by calibration with
    everything quantized. Bits are those of `config` throughout: a group in the first or last layer has `edge_bits`.

    Args:
        model: a full-precision model of a supported family; it is not changed.
        images: what to measure on: examples with "pixel_values", (channels, height, width), and "labels".
        calibration: training images for the activation scales.
        config: what quantized means.
        groups: shell-style patterns of group names, see `hf_vaq.analysis.groups`; all groups if not given.
        budget: with steps above 0 every setting is measured again after that much training.
        train_images: images for it.
        batch_size: images a forward pass.
        device: None takes an accelerator where there is one, otherwise the CPU.
        cache: folder for finished work: the same call with the same folder goes on where it was stopped.
        progress: whether to show progress bars on stderr.

    Raises:
        ValueError: the model is quantized already or cannot be quantized, there are no images, or a group name
            matches nothing.
    """
    budget = budget or TrainingBudget()
    if budget.steps and train_images is None:
        raise ValueError(f"train_steps is {budget.steps}, but there are no train_images.")
    device = choose_device(device)
    batches = batches_of(images, batch_size)
    copies = QuantizedCopies(model, list(batches_of(calibration, batch_size)), device, cache)
    quantized, folder = copies.quantized(config)
    board = Switchboard(quantized)
    settings = _settings(board, find_groups(quantized, board, groups))
    folder = folder and folder / f"results-{_CACHE_VERSION}"
    measured = measure_settings(quantized, board, settings, batches, folder, progress, "calibrated")
    rows = [_row(name, result, 0) for name, result in measured.items()]
    if budget.steps:
        training = _Training(copies, quantized, board, batches, train_images, budget, folder)
        names = [name for name in settings if name[0] != FULL_PRECISION]
        for name in tqdm(names, desc=f"{budget.steps} steps each", unit="setting", disable=not progress, leave=False):
            rows.append(_row(name, training.measure(name, settings[name]), budget.steps))
    return SensitivityResult(tuple(rows), len(images), _described(config), budget)


Name = tuple[str, str]
"""Setting and group."""


def measure_settings(
    model: PreTrainedModel,
    board: Switchboard,
    settings: Mapping[Name, frozenset[Part]],
    batches: Sequence[Batch],
    folder: Path | None,
    progress: bool,
    description: str,
) -> dict[Name, Measured]:
    """Measure settings of one quantized model; see `SettingsMeasurement`."""
    names = {" / ".join(name): name for name in settings}
    measurement = SettingsMeasurement(
        model,
        board,
        {text: settings[name] for text, name in names.items()},
        None if folder is None else BatchCache(folder / "batches"),
        _clock(model.device),
    )
    total = len(settings) * len(batches)
    with tqdm(total=total, desc=description, unit="pass", disable=not progress, leave=False) as bar:
        return {names[text]: result for text, result in measurement.run(batches, bar.update).items()}


def _settings(board: Switchboard, groups: Sequence[Group]) -> dict[Name, frozenset[Part]]:
    settings: dict[Name, frozenset[Part]] = {(FULL_PRECISION, ""): frozenset(), (EVERYTHING, ""): board.parts}
    for group in groups:
        settings[ONLY, group.name] = group.parts
        settings[ALL_BUT, group.name] = board.parts - group.parts
    return settings


def _row(name: Name, measured: Measured, train_steps: int) -> SensitivityRow:
    setting, group = name
    return SensitivityRow(
        group, setting, train_steps, measured.top1, measured.mean_loss, measured.snr_db, measured.seconds
    )


class _Training:
    """Measures settings after training, each from the same calibrated start."""

    def __init__(
        self,
        copies: QuantizedCopies,
        model: PreTrainedModel,
        board: Switchboard,
        batches: Sequence[Batch],
        images: Dataset,
        budget: TrainingBudget,
        folder: Path | None,
    ):
        self.model, self.board, self.images, self.budget = model, board, images, budget
        self.teacher = copies.full_precision()
        self.batches = list(batches)
        with torch.inference_mode():
            device = self.model.device
            self.reference = [self.teacher(pixel_values=b["pixel_values"].to(device)).logits for b in self.batches]
        self.start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        described = {**vars(budget), "train_images": len(images)}
        key = digest({str(i): batch["pixel_values"] for i, batch in enumerate(self.batches)}, described)
        self.cache = None if folder is None else BatchCache(folder / "trained")
        self.key = key

    def measure(self, name: Name, parts: frozenset[Part]) -> Measured:
        text = " / ".join(name)
        known = self.cache.read(self.key) if self.cache is not None else {}
        if text in known:
            return Measured(**known[text])
        self.model.load_state_dict(self.start)
        train_setting(self.model, self.board, parts, self.teacher, self.images, self.budget)
        with self.board.quantizing(parts):
            measured = measure_model(self.model, self.batches, self.reference)
        if self.cache is not None:
            self.cache.write(self.key, known | {text: vars(measured)})
        return measured


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return clock


def _described(config: QuantConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ("packed", "quant_method")}
