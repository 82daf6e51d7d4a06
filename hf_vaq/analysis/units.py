"""What gets a bit-width of its own: the self-attention and the MLP of every block, and what they weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..nn import weight_quantized_modules
from ..nn.attention import QUANTIZED_TENSORS
from ..numerics.packing import packed_size
from .groups import block_names, locate
from .switching import Part, Switchboard


@dataclass(frozen=True)
class Unit:
    """What gets one bit-width: the self-attention or the MLP of one block.

    Attributes:
        name: `block.<i>.mhsa` or `block.<i>.ffn`.
        parts: its quantizers.
        modules: the names by which `module_overrides` knows it.
        weights: number of weights of each of its layers.
    """

    name: str
    parts: frozenset[Part]
    modules: tuple[str, ...]
    weights: tuple[int, ...]


def find_units(model: nn.Module, board: Switchboard) -> list[Unit]:
    """Self-attention and MLP of every block, in order.

    Raises:
        ValueError: the model has no transformer blocks.
    """
    blocks = block_names(model, board)
    layers = dict(weight_quantized_modules(model))
    parts: dict[str, set[Part]] = {}
    for part in board.parts:
        location = locate(model, part.quantizer)
        if location.block is not None:
            parts.setdefault(f"block.{blocks.index(location.block)}.{location.kinds[0]}", set()).add(part)
    if not parts:
        raise ValueError(f"{type(model).__name__} has no transformer blocks whose bits could be chosen.")
    names = sorted(parts, key=lambda name: (int(name.split(".")[1]), name.endswith(".ffn")))
    units = []
    for name in names:
        modules = sorted({_override_name(part.quantizer) for part in parts[name]})
        weights = tuple(layers[module].weight.numel() for module in modules if module in layers)
        units.append(Unit(name, frozenset(parts[name]), tuple(modules), weights))
    return units


def module_overrides(model: nn.Module, units: Sequence[Unit], bits: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The `module_overrides` that give every unit its bits: one pattern a unit where one says exactly that."""
    layers = {name for name, _ in weight_quantized_modules(model)}
    universe = layers | {name for unit in units for name in unit.modules}
    overrides = {}
    for unit in units:
        parent = min(unit.modules, key=len)
        parent = parent.rpartition(".")[0] if parent in layers else parent
        pattern = f"{parent}*"
        matched = {name for name in universe if fnmatchcase(name, pattern)}
        patterns = [pattern] if matched == set(unit.modules) else unit.modules
        for name in patterns:
            overrides[name] = {"weight_bits": bits[unit.name], "activation_bits": bits[unit.name]}
    return overrides


def _override_name(quantizer: str) -> str:
    owner, _, role = quantizer.rpartition(".")
    return owner.rpartition(".")[0] if role in QUANTIZED_TENSORS else owner


def average_bits(units: Sequence[Unit], bits: Mapping[str, int]) -> float:
    """Bits a weight, over all units; `bits` by the name of the unit."""
    weights = {unit.name: sum(unit.weights) for unit in units}
    return sum(bits[name] * count for name, count in weights.items()) / sum(weights.values())


def packed_bytes(unit: Unit, bits: int) -> int:
    """Bytes of the codes of a unit."""
    return sum(packed_size(weights, bits) for weights in unit.weights)


def total_bytes(units: Sequence[Unit], bits: Mapping[str, int]) -> int:
    """Bytes of the codes of all units; `bits` by the name of the unit."""
    return sum(packed_bytes(unit, bits[unit.name]) for unit in units)
