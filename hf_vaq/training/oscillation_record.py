"""The record of a training run that `hf-vaq analyze oscillation` reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..files import replace_folder
from ..nn import weight_quantized_modules
from ..numerics.levels import integer_range
from ..version import __version__
from .oscillation import OscillationTracker
from .sharding import unsharded

RECORD_FOLDER = "oscillation"
"""Folder in a run's output folder, and in every checkpoint, that holds the record."""
RECORD_METADATA = "record.json"
FORMAT_VERSION = 1

TABLES = {
    "shares": {"step": pa.int32(), "module": pa.string(), "percentage": pa.float32()},
    "scales": {
        "step": pa.int32(),
        "module": pa.string(),
        "minimum": pa.float32(),
        "mean": pa.float32(),
        "maximum": pa.float32(),
    },
    "distances": {
        "step": pa.int32(),
        "module": pa.string(),
        "code": pa.int16(),
        "interval": pa.int16(),
        "count": pa.int64(),
    },
    "trajectories": {"step": pa.int32(), "module": pa.string(), "weight": pa.int64(), "position": pa.float32()},
}
"""Files of the record, `<table>.parquet`, and their columns."""

SHARE_POINTS = 200
HISTOGRAM_POINTS = 20
TRAJECTORY_POINTS = 1000
TRAJECTORY_WINDOW = 200
"""Steps after half of the run, of which every single one is in the trajectories: an oscillation shows only there."""
WEIGHTS_PER_MODULE = 8

DISTANCE_INTERVALS = 20
"""Intervals from 0 to half a scale; one more holds the weights that are farther from a threshold, in an outer bin."""


class OscillationRecorder(TrainerCallback):
    """Writes down, now and then, what the tracker and the quantizers know; `VaqTrainer` saves it at the end.

    - `shares`: oscillation percentage of every module, at most `SHARE_POINTS` times a run;
    - `scales`: smallest, mean and largest scale of every module's groups, as often;
    - `distances`: histogram of the distance of latent weights to the nearest threshold between two codes, in units of
      the scale, by module and code, at most `HISTOGRAM_POINTS` times a run;
    - `trajectories`: latent weight divided by scale, of `WEIGHTS_PER_MODULE` weights of every module, at most
      `TRAJECTORY_POINTS` times a run and at each of the `TRAJECTORY_WINDOW` steps after its half. Half of them are
      spread evenly over the module; the others lie nearest to a threshold before training.

    Args:
        tracker: counts the oscillations; it is updated before this callback is called.
    """

    def __init__(self, tracker: OscillationTracker):
        self.tracker = tracker
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._metadata: dict[str, Any] = {}
        self._chosen: dict[str, Tensor] = {}
        self._loaded = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Start the record with the state before the first step, or go on with that of the checkpoint."""
        if not self._loaded:
            with unsharded(model):
                self._start(args, state, model)
        self._metadata["steps"] = state.max_steps
        self._loaded = False

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Record, if it is time, the state after the step `state.global_step`."""
        step, last = state.global_step, state.max_steps
        histogram = _is_due(step, last, HISTOGRAM_POINTS)
        shares = histogram or _is_due(step, last, SHARE_POINTS)
        trajectories = last // 2 < step <= last // 2 + TRAJECTORY_WINDOW or _is_due(step, last, TRAJECTORY_POINTS)
        if (not shares and not trajectories) or next(weight_quantized_modules(model), None) is None:
            return
        with unsharded(model):
            if state.is_world_process_zero and shares:
                self._add_state(model, step, histogram)
            if state.is_world_process_zero and trajectories:
                self._add_trajectories(model, step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the record into the run's output folder."""
        if state.is_world_process_zero:
            self.save(args.output_dir)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the record to `RECORD_FOLDER` in `folder`, whole or not at all; nothing if no weight is quantized."""
        if not self._chosen:
            return
        target = Path(folder) / RECORD_FOLDER
        partial = target.with_name(f".{RECORD_FOLDER}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for name, columns in TABLES.items():
                pq.write_table(pa.concat_tables(self._tables[name]), partial / f"{name}.parquet")
                self._tables[name] = [pq.read_table(partial / f"{name}.parquet", columns=list(columns))]
            (partial / RECORD_METADATA).write_text(json.dumps(self._metadata, indent=2) + "\n", encoding="utf-8")
            replace_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def load(self, folder: str | os.PathLike) -> None:
        """Go on with the record in a checkpoint; where there is none, a new one starts at the next step."""
        path = Path(folder) / RECORD_FOLDER
        if not (path / RECORD_METADATA).exists():
            return
        self._metadata = json.loads((path / RECORD_METADATA).read_text(encoding="utf-8"))
        self._tables = {name: [pq.read_table(path / f"{name}.parquet")] for name in TABLES}
        weights = self._tables["trajectories"][0].select(["module", "weight"]).to_pydict()
        chosen: dict[str, dict[int, None]] = {}
        for module, weight in zip(weights["module"], weights["weight"], strict=True):
            chosen.setdefault(module, {})[weight] = None
        self._chosen = {module: torch.tensor(list(indices)) for module, indices in chosen.items()}
        self._loaded = True

    def _start(self, args: Any, state: Any, model: nn.Module) -> None:
        if not state.is_world_process_zero:
            return
        self._tables = {name: [] for name in TABLES}
        self._metadata = _metadata(model, self.tracker, args.bin_regularization, state.max_steps)
        self._chosen = _choose_weights(model)
        self._add_state(model, state.global_step, histogram=True)
        self._add_trajectories(model, state.global_step)

    def _add(self, name: str, **columns: Any) -> None:
        schema = pa.schema(list(TABLES[name].items()))
        self._tables[name].append(pa.table(columns, schema=schema))

    @torch.no_grad()
    def _add_state(self, model: nn.Module, step: int, histogram: bool) -> None:
        shares = self.tracker.percentage_by_module()
        if not shares:
            return
        names = list(shares)
        self._add("shares", step=[step] * len(names), module=names, percentage=list(shares.values()))
        modules = dict(weight_quantized_modules(model))
        scales = [modules[name].weight_quantizer.scale(modules[name].weight) for name in names]
        summary = torch.stack([torch.stack([s.min(), s.mean(), s.max()]) for s in scales]).cpu().T.tolist()
        columns = dict(zip(("minimum", "mean", "maximum"), summary, strict=True))
        self._add("scales", step=[step] * len(names), module=names, **columns)
        if histogram:
            for name in names:
                self._add_distances(name, modules[name], step)

    def _add_distances(self, name: str, module: nn.Module, step: int) -> None:
        counts = distance_histogram(module).tolist()
        qn, _ = integer_range(module.weight_quantizer.bits)
        rows = [(qn + i, j, count) for i, row in enumerate(counts) for j, count in enumerate(row)]
        code, interval, count = zip(*rows, strict=True)
        self._add("distances", step=[step] * len(rows), module=[name] * len(rows), code=code, interval=interval,
                  count=count)  # fmt: skip

    @torch.no_grad()
    def _add_trajectories(self, model: nn.Module, step: int) -> None:
        if not self._chosen:
            return
        positions, names, weights = [], [], []
        for name, module in weight_quantized_modules(model):
            chosen = self._chosen[name].to(module.weight.device)
            positions.append(_positions(module, chosen))
            names += [name] * len(chosen)
            weights += self._chosen[name].tolist()
        self._add(
            "trajectories",
            step=[step] * len(names),
            module=names,
            weight=weights,
            position=torch.cat(positions).cpu().tolist(),
        )


@torch.no_grad()
def distance_histogram(module: nn.Module) -> Tensor:
    """Distances of latent weights to the nearest threshold between two codes, in units of the scale.

    Thresholds lie half-way between neighbouring codes: (Qn + 1/2) s, ..., (Qp - 1/2) s. A weight in an inner bin is at
    most half a scale away from one.

    Returns:
        Counts, int64, (codes from Qn to Qp, `DISTANCE_INTERVALS` + 1): equal intervals from 0 to half a scale, and one
        for everything beyond.
    """
    quantizer = module.weight_quantizer
    qn, qp = integer_range(quantizer.bits)
    v = _all_positions(module)
    codes = v.clamp(qn, qp).round_()
    distance = _distance_to_threshold(v, qn, qp)
    interval = (distance * (2 * DISTANCE_INTERVALS)).floor_().clamp_(0, DISTANCE_INTERVALS)
    index = ((codes - qn) * (DISTANCE_INTERVALS + 1) + interval).long().flatten()
    levels = qp - qn + 1
    return torch.bincount(index, minlength=levels * (DISTANCE_INTERVALS + 1)).view(levels, -1)


def _distance_to_threshold(v: Tensor, qn: int, qp: int) -> Tensor:
    nearest = (v - 0.5).round_().add_(0.5).clamp_(qn + 0.5, qp - 0.5)
    return (v - nearest).abs_()


def _all_positions(module: nn.Module) -> Tensor:
    quantizer, weight = module.weight_quantizer, module.weight
    return weight.float() / quantizer.groups.expand(quantizer.scale(weight), weight.shape)


def _positions(module: nn.Module, indices: Tensor) -> Tensor:
    quantizer, weight = module.weight_quantizer, module.weight
    scale = quantizer.groups.expand(quantizer.scale(weight), weight.shape).expand(weight.shape)
    where = torch.unravel_index(indices, weight.shape)
    return weight[where].float() / scale[where]


@torch.no_grad()
def _choose_weights(model: nn.Module) -> dict[str, Tensor]:
    chosen = {}
    for name, module in weight_quantized_modules(model):
        count = min(WEIGHTS_PER_MODULE, module.weight.numel())
        spread = torch.arange(count - count // 2) * (module.weight.numel() // count)
        distance = _distance_to_threshold(
            _all_positions(module), *integer_range(module.weight_quantizer.bits)
        ).flatten()
        distance[spread] = torch.inf
        nearest = distance.topk(count // 2, largest=False).indices.cpu()
        chosen[name] = torch.cat([spread, nearest]).sort().values
    return chosen


def _metadata(model: nn.Module, tracker: OscillationTracker, bin_regularization: float, steps: int) -> dict[str, Any]:
    modules = dict(weight_quantized_modules(model))
    return {
        "format_version": FORMAT_VERSION,
        "hf_vaq_version": __version__,
        "steps": steps,
        "momentum": tracker.momentum,
        "threshold": tracker.threshold,
        "bin_regularization": bin_regularization,
        "modules": {
            name: {"bits": module.weight_quantizer.bits, "weights": module.weight.numel()}
            for name, module in modules.items()
        },
    }


def _is_due(step: int, last: int, points: int) -> bool:
    """Whether `step` is one of at most `points` evenly spaced steps; the last step always is."""
    return step == last or step % max(1, -(-last // points)) == 0
