"""From a model and a QuantConfig to the list of quantizers it needs; nothing is changed yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from ..config import OVERRIDABLE, QuantConfig
from ..nn.attention import QUANTIZED_TENSORS
from ..numerics.groups import ScaleGroups
from . import families

WHOLE_TENSOR = ScaleGroups()


@dataclass(frozen=True)
class WeightSpec:
    """Bits and scale groups of a weight."""

    bits: int
    groups: ScaleGroups


@dataclass(frozen=True)
class ActivationSpec:
    """Bits, range and scale groups of an activation."""

    bits: int
    groups: ScaleGroups = WHOLE_TENSOR
    signed: bool = True
    with_offset: bool = False


@dataclass
class Plan:
    """What to quantize, by module name.

    Attributes:
        weights: weights of Linear and Conv2d layers.
        inputs: inputs of such layers.
        shared_inputs: inputs of modules whose layers all read them.
        attention: the tensors inside an attention module, by their name in `QUANTIZED_TENSORS`.
    """

    weights: dict[str, WeightSpec] = field(default_factory=dict)
    inputs: dict[str, ActivationSpec] = field(default_factory=dict)
    shared_inputs: dict[str, ActivationSpec] = field(default_factory=dict)
    attention: dict[str, dict[str, ActivationSpec]] = field(default_factory=dict)


def plan_quantization(model: PreTrainedModel, config: QuantConfig, *, all_patterns: bool = True) -> Plan:
    """Decide for every layer of `model` what `config` means for it.

    Args:
        model: of a supported architecture, in full precision.
        config: what to quantize.
        all_patterns: whether each pattern of `config` must match something.

    Raises:
        ValueError: if the architecture is not supported, a pattern matches nothing, an override contradicts another,
            heads do not divide a layer, or nothing at all would be quantized.
    """
    families.check_supported(model, config.quantize_attention)
    planner = _Planner(model, config)
    for name in planner.layers:
        planner.plan_layer(name)
    for name in planner.shared:
        planner.plan_shared_input(name)
    for name in planner.attentions:
        planner.plan_attention(name)
    if all_patterns:
        planner.check_patterns_used()
    if not (planner.plan.weights or planner.plan.inputs or planner.plan.shared_inputs):
        raise ValueError(
            f"nothing in {type(model).__name__} would be quantized with weight_bits={config.weight_bits},"
            f" activation_bits={config.activation_bits}, modules_to_not_convert={config.modules_to_not_convert}."
        )
    return planner.plan


def forgotten_layers(model: PreTrainedModel, config: QuantConfig) -> list[str]:
    """Names of layers of a quantized model whose weights `config` quantizes, and that are not: they came in later."""
    planner = _Planner(model, config)
    return [name for name in planner.layers if planner.layer_settings(name).weight_bits is not None]


@dataclass(frozen=True)
class _Settings:
    weight_bits: int | None
    activation_bits: int | None
    weight_granularity: str
    activation_granularity: str


class _Planner:
    def __init__(self, model: PreTrainedModel, config: QuantConfig):
        self.model = model
        self.config = config
        self.plan = Plan()
        self.overrides = config.module_overrides or {}
        self.unused = set(self.overrides)
        modules = dict(model.named_modules())
        self.layers = {name: module for name, module in modules.items() if self._is_quantizable(name, module)}
        self.shared: dict[str, tuple[str, ...]] = {}
        self.attentions: dict[str, nn.Module] = {}
        if model.config.model_type in families.SUPPORTED:
            for name, module in modules.items():
                for roles in families.SHARED_INPUTS:
                    if all(f"{name}.{role}" in self.layers for role in roles):
                        self.shared[name] = roles
                if families.is_attention(module) and should_convert_module(name, config.modules_to_not_convert):
                    self.attentions[name] = module

    def plan_layer(self, name: str) -> None:
        """Weight of one layer, and its input unless that is shared."""
        layer = self.layers[name]
        settings = self.layer_settings(name)
        if settings.weight_bits is not None:
            self.plan.weights[name] = WeightSpec(settings.weight_bits, self._weight_groups(name, layer, settings))
        bits = settings.activation_bits
        parent, _, role = name.rpartition(".")
        if role in self.shared.get(parent, ()):
            self._check_agrees_with_shared_input(name, parent, bits)
        elif bits is not None:
            after_gelu = role in families.AFTER_GELU
            per_head = role == "o_proj" and settings.activation_granularity == "head"
            groups = ScaleGroups(self._heads(parent), -1) if per_head else WHOLE_TENSOR
            self.plan.inputs[name] = ActivationSpec(bits, groups, signed=not after_gelu, with_offset=after_gelu)

    def layer_settings(self, name: str) -> _Settings:
        """What the configuration says of the layer `name`."""
        return self._settings(name, edge=families.is_edge(self.model, name))

    def plan_shared_input(self, name: str) -> None:
        """The input that several layers of the module `name` read."""
        bits = self._settings(name).activation_bits
        if bits is not None:
            self.plan.shared_inputs[name] = ActivationSpec(bits)

    def plan_attention(self, name: str) -> None:
        """Queries, keys, values and probabilities of an attention module."""
        specs = {}
        for tensor in QUANTIZED_TENSORS if self.config.quantize_attention else ():
            settings = self._settings(name, f"{name}.attention_quantizers.{tensor}")
            if settings.activation_bits is not None:
                # All four have the heads in dimension 1.
                per_head = settings.activation_granularity == "head"
                groups = ScaleGroups(self._heads(name), 1) if per_head else WHOLE_TENSOR
                specs[tensor] = ActivationSpec(settings.activation_bits, groups, signed=tensor != "probabilities")
        if specs:
            self.plan.attention[name] = specs

    def check_patterns_used(self) -> None:
        """Refuse patterns that matched nothing."""
        examples = [*list(self.layers)[:3], *list(self.attentions)[:1]]
        names = [name for name, _ in self.model.named_modules() if name]
        for pattern in self.config.modules_to_not_convert or ():
            if all(should_convert_module(name, [pattern]) for name in names):
                raise ValueError(
                    f"QuantConfig.modules_to_not_convert: no module of {type(self.model).__name__} matches"
                    f" {pattern!r}. Modules are named like {', '.join(examples)}."
                )
        if self.unused:
            raise ValueError(
                f"QuantConfig.module_overrides: no quantized module of {type(self.model).__name__} matches"
                f" {', '.join(map(repr, sorted(self.unused)))}. Modules are named like {', '.join(examples)};"
                " patterns are shell-style, as in '*.q_proj'."
            )

    def _is_quantizable(self, name: str, module: nn.Module) -> bool:
        # A subclass may compute something else than its base: leave it alone.
        linear = type(module) is nn.Linear
        patches = type(module) is nn.Conv2d and families.is_patch_embedding(name)
        return (linear or patches) and should_convert_module(name, self.config.modules_to_not_convert)

    def _settings(self, *names: str, edge: bool = False) -> _Settings:
        """What the configuration says of the module that goes by `names`, overrides included."""
        settings = _Settings(**{name: getattr(self.config, name) for name in OVERRIDABLE})
        if edge:
            # A side that is not quantized in the blocks is not quantized in the first and last layer either.
            settings = replace(
                settings,
                weight_bits=settings.weight_bits and self.config.edge_bits,
                activation_bits=settings.activation_bits and self.config.edge_bits,
            )
        for pattern, fields in self.overrides.items():
            if any(fnmatchcase(name, pattern) for name in names):
                self.unused.discard(pattern)
                settings = replace(settings, **fields)
        return settings

    def _check_agrees_with_shared_input(self, name: str, parent: str, bits: int | None) -> None:
        expected = self._settings(parent).activation_bits
        if bits != expected:
            raise ValueError(
                f"QuantConfig.module_overrides: activation_bits={bits} for {name!r}, but {parent!r}, whose input it"
                f" shares with {', '.join(self.shared[parent])}, has activation_bits={expected}: override {parent!r}."
            )

    def _weight_groups(self, name: str, layer: nn.Linear | nn.Conv2d, settings: _Settings) -> ScaleGroups:
        parent, _, role = name.rpartition(".")
        if settings.weight_granularity == "channel":
            return ScaleGroups(layer.weight.shape[0], 0)
        if settings.weight_granularity == "head" and parent in self.attentions and role in families.HEAD_DIMENSION:
            groups = ScaleGroups(self._heads(parent), families.HEAD_DIMENSION[role])
            groups.check(layer.weight.shape, f"{name}.weight (weight_granularity='head')")
            return groups
        return WHOLE_TENSOR

    def _heads(self, attention: str) -> int:
        return self.model.get_submodule(attention).num_attention_heads
