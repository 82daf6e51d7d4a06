"""What is quantized to how many bits, and what it weighs: the table of a card, read off the model itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from ..config import QuantConfig
from ..integration.families import is_patch_embedding
from ..integration.injection import inject
from ..integration.plan import plan_quantization
from ..nn import PackedActivationQuantizer, PackedWeight

_ROLES = {
    "q_proj": "query, key and value projections",
    "k_proj": "query, key and value projections",
    "v_proj": "query, key and value projections",
    "o_proj": "attention output projections",
    "fc1": "first MLP layers",
    "gate_proj": "first MLP layers",
    "up_proj": "first MLP layers",
    "fc2": "second MLP layers",
    "down_proj": "second MLP layers",
}
_FIRST, _OTHER, _LAST = "first layer (patch embedding)", "between stages", "last layer (classifier)"
_ORDER = [_FIRST, *dict.fromkeys(_ROLES.values()), _OTHER, _LAST]
_ATTENTION = {
    "query": "queries",
    "key": "keys",
    "value": "values",
    "probabilities": "attention probabilities",
}


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one kind.

    Attributes:
        name: the kind.
        layers: how many there are.
        weight_bits: bits of their weights, each value once, in order; None stands for floating point.
        input_bits: the same of their inputs.
        scales: how many weight scales a layer has, each value once.
        weights: number of weights in all of them.
        size_bytes: of the codes and scales of their weights.
    """

    name: str
    layers: int
    weight_bits: tuple[int | None, ...]
    input_bits: tuple[int | None, ...]
    scales: tuple[int, ...]
    weights: int
    size_bytes: int


@dataclass(frozen=True)
class Scheme:
    """The quantization of one model.

    Attributes:
        groups: layers with quantized weights or inputs, in the order of the model.
        attention_bits: bits of queries, keys, values and probabilities, by name, each value once; empty where they
            are not quantized.
        float_parameters: parameters that stay in floating point.
        float_bytes: what these take.
        parameters: all parameters, weights that are packed included.
        size_bytes: of all tensors, scales of activations included.
    """

    groups: tuple[LayerGroup, ...]
    attention_bits: dict[str, tuple[int, ...]]
    float_parameters: int
    float_bytes: int
    parameters: int
    size_bytes: int

    @property
    def float32_bytes(self) -> int:
        """What the tensors of the same model take in full precision."""
        return 4 * self.parameters


def describe_scheme(model: PreTrainedModel) -> Scheme:
    """Read the scheme off a packed model; its values are not looked at, so it may be on the meta device.

    Raises:
        ValueError: the model is not packed.
    """
    if not any(isinstance(module, PackedWeight | PackedActivationQuantizer) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is not packed; accepted: what hf_vaq.pack returned.")
    groups: dict[str, list[nn.Module]] = {}
    inputs: dict[str, list[int | None]] = {}
    attention: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        for tensor, quantizer in getattr(module, "attention_quantizers", {}).items():
            attention.setdefault(_ATTENTION[tensor], []).append(quantizer.bits)
        if not isinstance(module, (PackedWeight, nn.Linear, nn.Conv2d)):
            continue
        parent, _, role = name.rpartition(".")
        quantizer = getattr(module, "input_quantizer", None)
        if quantizer is None and role in _ROLES:
            quantizer = getattr(model.get_submodule(parent), "input_quantizer", None)
        if quantizer is None and not isinstance(module, PackedWeight):
            continue
        kind = _kind(model, name)
        groups.setdefault(kind, []).append(module)
        inputs.setdefault(kind, []).append(None if quantizer is None else quantizer.bits)
    packed = [module for module in model.modules() if isinstance(module, PackedWeight)]
    codes = {id(module.weight_codes) for module in packed} | {id(module.weight_scale) for module in packed}
    scales = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, PackedActivationQuantizer)
        for tensor in module.buffers(recurse=False)
    }
    floats = [t for t in model.state_dict(keep_vars=True).values() if id(t) not in codes and id(t) not in scales]
    weights = sum(module.shape.numel() for module in packed)
    return Scheme(
        groups=tuple(_group(kind, groups[kind], inputs[kind]) for kind in _ORDER if kind in groups),
        attention_bits={name: _distinct(bits) for name, bits in attention.items()},
        float_parameters=sum(tensor.numel() for tensor in floats),
        float_bytes=_size(floats),
        parameters=weights + sum(tensor.numel() for tensor in floats),
        size_bytes=_size(model.state_dict().values()),
    )


def planned_scheme(config: PretrainedConfig, quantization: QuantConfig) -> Scheme:
    """The scheme that a model with this configuration will have once it is quantized and packed.

    Raises:
        ValueError: the quantization does not fit the model.
    """
    packed = QuantConfig.from_dict(quantization.to_dict() | {"packed": True})
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    inject(model, plan_quantization(model, packed), packed)
    return describe_scheme(model)


def _kind(model: nn.Module, name: str) -> str:
    role = name.rpartition(".")[2]
    if role in _ROLES:
        return _ROLES[role]
    if is_patch_embedding(name):
        return _FIRST
    prefix = getattr(model, "base_model_prefix", "")
    return _OTHER if prefix and name.startswith(f"{prefix}.") else _LAST


def _group(kind: str, layers: list[nn.Module], inputs: list[int | None]) -> LayerGroup:
    packed = [layer for layer in layers if isinstance(layer, PackedWeight)]
    return LayerGroup(
        name=kind,
        layers=len(layers),
        weight_bits=_distinct([getattr(layer, "bits", None) for layer in layers]),
        input_bits=_distinct(inputs),
        scales=_distinct([layer.groups.count for layer in packed]),
        weights=sum(layer.weight.numel() if layer not in packed else layer.shape.numel() for layer in layers),
        size_bytes=sum(_size([layer.weight_codes, layer.weight_scale]) for layer in packed)
        + sum(_size([layer.weight]) for layer in layers if layer not in packed),
    )


def _distinct(values: Iterable[int | None]) -> tuple:
    return tuple(sorted(set(values), key=lambda value: (value is None, value)))


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
