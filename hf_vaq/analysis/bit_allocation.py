"""From sensitivity to action: the bits of every part of a model under a budget, by integer programming."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..config import QuantConfig
from ..machine import choose_device
from ..numerics.levels import check_bits
from ..packing import pack
from .extra import load_extra
from .measuring import Measured
from .preparing import QuantizedCopies, batches_of
from .sensitivity import EVERYTHING, FULL_PRECISION, measure_settings
from .switching import Switchboard
from .units import Unit, average_bits, find_units, module_overrides, packed_bytes, total_bytes

if TYPE_CHECKING:
    import pandas

CANDIDATE_BITS = (2, 3, 4, 5, 6, 8)
_SIZE = re.compile(r"([\d.]+)\s*(kB|MB|GB|KiB|MiB|GiB)")
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class Budget:
    """An upper bound on the average bits of the weights in the blocks, or on the size of the packed model.

    Attributes:
        average_bits: of the weights of all units together; None if the size is bounded.
        size_bytes: of the tensors of the packed model; None if the average is bounded.
    """

    average_bits: float | None = None
    size_bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "3.5" (bits a weight) or "900kB", "1.2MB" (size of the packed model).

        Raises:
            ValueError: it is neither.
        """
        lowest, highest = min(CANDIDATE_BITS), max(CANDIDATE_BITS)
        match = _SIZE.fullmatch(text.strip())
        try:
            if match:
                return cls(size_bytes=int(float(match[1]) * _BYTES[match[2]]))
            bits = float(text)
        except ValueError:
            bits = 0.0
        if not lowest <= bits <= highest:
            raise ValueError(
                f"suggest_bits is {text!r}; accepted: average bits of a weight from {lowest} to {highest}, such as"
                " 3.5, or the size of the packed model, such as 900kB or 1.2MB."
            )
        return cls(average_bits=bits)


@dataclass(frozen=True)
class BitSuggestion:
    """What `suggest_bits` proposes, and how it did.

    Attributes:
        bits: bit-width of every unit.
        average_bits: over the weights of all units.
        size_bytes: of the tensors of the packed model.
        module_overrides: for `QuantConfig`, or for a recipe.
        noise: measured noise-to-signal ratio of the logits by unit (quantized alone) and bits.
        comparison: the suggestion and uniform bits, calibrated and measured: name, average bits, size in bytes, top-1
            in percent, loss in nats, SNR of the logits in decibels.
    """

    bits: dict[str, int]
    average_bits: float
    size_bytes: int
    module_overrides: dict[str, dict[str, int]]
    noise: dict[str, dict[int, float]]
    comparison: tuple[dict[str, Any], ...]

    def to_yaml(self) -> str:
        """The block for a recipe."""
        return yaml.safe_dump({"module_overrides": self.module_overrides}, sort_keys=False, default_flow_style=None)

    def table(self) -> pandas.DataFrame:
        """A line a unit: the bits chosen, and the measured noise-to-signal ratio at every candidate."""
        import pandas

        return pandas.DataFrame(
            {"unit": unit, "bits": bits, **{f"noise at {b} bits": value for b, value in self.noise[unit].items()}}
            for unit, bits in self.bits.items()
        )


def allocate_bits(
    noise: Mapping[str, Mapping[int, float]], cost: Mapping[str, Mapping[int, float]], budget: float
) -> dict[str, int]:
    """Choose one bit-width for every unit: least total noise at a total cost of at most `budget`.

    A 0-1 program with one variable a unit and bit-width, solved to optimality by HiGHS (`scipy.optimize.milp`). The
    noise of units quantized together is taken as the sum of their noise alone, which holds as long as it is small and
    independent.

    Args:
        noise: noise-to-signal ratio by unit and bits.
        cost: bits (or bytes) that the weights of the unit take, by unit and bits.
        budget: bound on the sum of costs.

    Raises:
        ValueError: even the lowest bits cost more than the budget.
    """
    numpy, optimize = load_extra("numpy"), load_extra("scipy.optimize")
    choices = [(unit, bits) for unit in noise for bits in noise[unit]]
    least = sum(min(cost[unit].values()) for unit in noise)
    if least > budget:
        raise ValueError(f"the budget of {budget:,.0f} is below {least:,.0f}, what the lowest bits take.")
    objective = numpy.array([noise[unit][bits] for unit, bits in choices])
    costs = numpy.array([cost[unit][bits] for unit, bits in choices], dtype=float)
    one_each = numpy.array([[float(unit == other) for other, _ in choices] for unit in noise])
    solution = optimize.milp(
        # Among equally good answers the cheaper one; relative sizes, because the solver's tolerances are absolute.
        objective / objective.max() + 1e-9 * costs / costs.max(),
        integrality=numpy.ones(len(choices)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(costs[None] / budget, -numpy.inf, 1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise RuntimeError(f"the solver found no allocation: {solution.message}")
    return {unit: bits for (unit, bits), chosen in zip(choices, solution.x, strict=True) if chosen > 0.5}


def suggest_bits(
    model: PreTrainedModel,
    images: Dataset,
    calibration: Dataset,
    budget: Budget,
    config: QuantConfig,
    *,
    candidates: Sequence[int] = CANDIDATE_BITS,
    batch_size: int = 50,
    device: str | torch.device | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> BitSuggestion:
    """Propose a bit-width for the self-attention and the MLP of every block.

    Each unit is quantized alone, weights and activations, to every candidate; the noise that this adds to the logits
    is its sensitivity. The allocation of least total noise within the budget is found by `allocate_bits`, then
    calibrated, measured, and compared with uniform bits below and above its average.

    Args:
        model: a full-precision model; it is not changed.
        images: what to measure on, see `analyze_sensitivity`.
        calibration: training images for the activation scales.
        budget: bound on average bits or size.
        config: granularity, and the bits of what is no unit: first and last layer.
        candidates: bit-widths to choose among.
        batch_size: images a forward pass.
        device: None takes an accelerator where there is one, otherwise the CPU.
        cache: folder for finished work.
        progress: whether to show progress bars on stderr.

    Raises:
        ValueError: the model has no transformer blocks, or the budget is too small.
    """
    for bits in candidates:
        check_bits(bits, "candidates")
    load_extra("scipy.optimize")
    device = choose_device(device)
    batches = batches_of(images, batch_size)
    copies = QuantizedCopies(model, list(batches_of(calibration, batch_size)), device, cache)
    noise: dict[str, dict[int, float]] = {}
    uniform: dict[int, Measured] = {}
    for bits in sorted(candidates):
        quantized, folder = copies.quantized(_with(config, bits))
        board = Switchboard(quantized)
        units = find_units(quantized, board)
        fixed_bytes = _tensor_bytes(pack(quantized)) - total_bytes(units, {unit.name: bits for unit in units})
        if bits == min(candidates):
            _check_budget(units, bits, budget, fixed_bytes)
        settings = {("unit", unit.name): unit.parts for unit in units} | {(EVERYTHING, ""): board.parts}
        measured = measure_settings(quantized, board, settings, batches, folder, progress, f"{bits} bits")
        uniform[bits] = measured.pop((EVERYTHING, ""))
        for (_, name), result in measured.items():
            noise.setdefault(name, {})[bits] = result.noise_to_signal
    chosen = _allocate(units, noise, budget, fixed_bytes)
    overrides = module_overrides(quantized, units, chosen)
    mixed, folder = copies.quantized(_with(config, min(candidates), overrides))
    board = Switchboard(mixed)
    settings = {(FULL_PRECISION, ""): frozenset(), (EVERYTHING, ""): board.parts}
    measured = measure_settings(mixed, board, settings, batches, folder, progress, "suggestion")
    average = average_bits(units, chosen)

    def line(name: str, bits: Mapping[str, int] | None, result: Measured) -> dict[str, Any]:
        return {
            "model": name,
            "average_bits": None if bits is None else average_bits(units, bits),
            "size_bytes": _tensor_bytes(model) if bits is None else fixed_bytes + total_bytes(units, bits),
            "top1": result.top1,
            "loss": result.mean_loss,
            "snr_db": result.snr_db,
        }

    nearest = [max((b for b in uniform if b <= average), default=None), min(b for b in uniform if b >= average)]
    comparison = [
        line(FULL_PRECISION, None, measured[FULL_PRECISION, ""]),
        line("suggestion", chosen, measured[EVERYTHING, ""]),
    ]
    for bits in sorted(set(nearest) - {None}):
        comparison.append(line(f"uniform {bits} bits", {unit.name: bits for unit in units}, uniform[bits]))
    size = fixed_bytes + total_bytes(units, chosen)
    return BitSuggestion(chosen, average, size, overrides, noise, tuple(comparison))


def _check_budget(units: Sequence[Unit], bits: int, budget: Budget, fixed_bytes: int) -> None:
    """Refuse a budget that the lowest bits exceed, before anything is measured."""
    lowest = fixed_bytes + total_bytes(units, {unit.name: bits for unit in units})
    if budget.size_bytes is not None and budget.size_bytes < lowest:
        raise ValueError(
            f"suggest_bits asks for {budget.size_bytes:,} bytes; accepted: at least {lowest:,}, what this model takes"
            f" at {bits} bits throughout."
        )
    if budget.average_bits is not None and budget.average_bits < bits:
        raise ValueError(f"suggest_bits asks for {budget.average_bits:g} bits a weight; accepted: at least {bits}.")


def _allocate(
    units: Sequence[Unit], noise: Mapping[str, Mapping[int, float]], budget: Budget, fixed_bytes: int
) -> dict[str, int]:
    if budget.average_bits is not None:
        cost = {unit.name: {bits: bits * sum(unit.weights) for bits in noise[unit.name]} for unit in units}
        return allocate_bits(noise, cost, budget.average_bits * sum(sum(unit.weights) for unit in units))
    cost = {unit.name: {bits: packed_bytes(unit, bits) for bits in noise[unit.name]} for unit in units}
    return allocate_bits(noise, cost, budget.size_bytes - fixed_bytes)


def _with(config: QuantConfig, bits: int, overrides: dict[str, dict[str, int]] | None = None) -> QuantConfig:
    fields = {name: value for name, value in vars(config).items() if name in QuantConfig.__dataclass_fields__}
    return QuantConfig(**fields | {"weight_bits": bits, "activation_bits": bits, "module_overrides": overrides})


def _tensor_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
