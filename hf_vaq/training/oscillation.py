"""Oscillation tracking during training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..nn import weight_quantized_modules
from ..numerics import native
from ..numerics.oscillation import Oscillations, oscillation_percentage
from .latent_weights import latent_weights

OSCILLATION_NAME = "oscillation.safetensors"
"""File in a checkpoint folder: for every module `<name>.codes` and `<name>.history`, see `Oscillations`; in its
metadata momentum, threshold, growth and steps."""
FIELDS = ("codes", "history")

logger = logging.get_logger(__name__)


class OscillationTracker(TrainerCallback):
    """Follows the integer codes of all fake-quantized weights, step by step (Nagel et al., ICML 2022).

    Costs three bytes a weight; five with a momentum below 1/1024. `VaqTrainer` starts it, saves it in every checkpoint
    and restores it on resume.

    Args:
        momentum: of the moving average of oscillations per step.
        threshold: frequency above which a weight oscillates.
    """

    def __init__(self, momentum: float = 0.001, threshold: float = 0.005):
        self.momentum = momentum
        self.threshold = threshold
        self._shapes: dict[str, torch.Size] = {}
        # The weights of all modules, one after the other.
        self._state = Oscillations(torch.empty(0, dtype=torch.int8), momentum)

    def start(self, model: nn.Module) -> None:
        """Begin with the present codes of `model` and no history."""
        self._shapes = {name: module.weight.shape for name, module in weight_quantized_modules(model)}
        self._state = Oscillations(_codes(model), self.momentum)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the state takes."""
        return self._state.nbytes

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Account for the step that the optimizer has just taken."""
        self.update(model)

    def update(self, model: nn.Module) -> None:
        """Account for one training step of `model`."""
        if not self._shapes:
            return
        weights = latent_weights([module for _, module in weight_quantized_modules(model)])
        if weights is None:
            self._state.update(_codes(model))
        else:
            native.count_oscillations(weights, self._state)

    def percentage(self) -> float | None:
        """Percentage (0 to 100) of all weights that oscillate; None if no weight is quantized."""
        return oscillation_percentage(self._state.frequency, self.threshold).item() if self._shapes else None

    def percentage_by_module(self) -> dict[str, float]:
        """The same for every module by itself."""
        parts = self._state.frequency.split([shape.numel() for shape in self._shapes.values()])
        shares = [oscillation_percentage(part, self.threshold) for part in parts]
        return dict(zip(self._shapes, torch.stack(shares).tolist(), strict=True)) if shares else {}

    def save(self, folder: str | os.PathLike) -> None:
        """Write the state to `OSCILLATION_NAME` in `folder`; the file is complete or not there."""
        if not self._shapes:
            return
        tensors: dict[str, Tensor] = {}
        for field in FIELDS:
            parts = getattr(self._state, field).cpu().split([shape.numel() for shape in self._shapes.values()])
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
                tensors[f"{name}.{field}"] = part.view(shape)
        path = Path(folder) / OSCILLATION_NAME
        partial = path.with_suffix(".partial")
        facts = {"momentum": self.momentum, "threshold": self.threshold}
        facts |= {"growth": self._state.growth, "steps": self._state.steps}
        save_file(tensors, partial, metadata={name: repr(value) for name, value in facts.items()})
        partial.replace(path)

    def load(self, folder: str | os.PathLike, model: nn.Module) -> None:
        """Continue from the state in `folder`; start anew, with a warning, if it holds none.

        Raises:
            ValueError: if the state belongs to another model.
        """
        self.start(model)
        path = Path(folder) / OSCILLATION_NAME
        if not self._shapes:
            return
        if not path.exists():
            logger.warning(f"{folder} has no {OSCILLATION_NAME}: oscillation tracking starts anew at this step.")
            return
        with safe_open(path, framework="pt") as file:
            expected = {f"{name}.{field}": shape for name, shape in self._shapes.items() for field in FIELDS}
            found = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            if found != expected:
                wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
                raise ValueError(
                    f"{path} does not fit the model: {wrong[0]!r} has shape {found.get(wrong[0])}, expected"
                    f" {expected.get(wrong[0])} ({len(wrong)} tensors differ). Resume from a checkpoint of this model."
                )
            facts = file.metadata()
            for field in FIELDS:
                stored = torch.cat([file.get_tensor(f"{name}.{field}").flatten() for name in self._shapes])
                getattr(self._state, field).copy_(stored)
            self._state.growth, self._state.steps = float(facts["growth"]), int(facts["steps"])


def _codes(model: nn.Module) -> Tensor:
    modules = [module for _, module in weight_quantized_modules(model)]
    codes = [module.weight_quantizer.codes(module.weight).flatten() for module in modules]
    return torch.cat(codes) if codes else torch.empty(0, dtype=torch.int8)
