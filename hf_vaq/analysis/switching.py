"""Switch the quantizers of a model on and off, whole or head by head, without changing the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..integration.quantizer import ATTENTION
from ..nn import ActivationQuantizer, WeightQuantizer, activation_quantizers, weight_quantized_modules
from ..nn.attention import QUANTIZED_TENSORS
from ..numerics.groups import ScaleGroups

# Where the heads lie in what a projection's quantizer sees: rows of q, k and v, columns of the output projection.
WEIGHT_HEAD_DIMENSION = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
WITHOUT_QUANTIZERS = f"{ATTENTION}_without_quantizers"
"""PyTorch's attention, under a name that a model with quantizers takes."""
AttentionInterface.register(WITHOUT_QUANTIZERS, sdpa_attention_forward)


@dataclass(frozen=True, order=True)
class Part:
    """A quantizer, or the share of it that belongs to one attention head.

    Attributes:
        quantizer: name of the quantizer's module.
        head: index of the head; None for a quantizer whose tensor does not divide into heads.
    """

    quantizer: str
    head: int | None = None


class Switchboard:
    """The quantizers of one model in training form, calibrated, each with its switch.

    Args:
        model: the model; it is never changed, but must not be used by others while `quantizing` is entered.
    """

    def __init__(self, model: nn.Module):
        self._switches: dict[str, _Switch] = {}
        for name, layer in weight_quantized_modules(model):
            heads = _heads(model, name, WEIGHT_HEAD_DIMENSION)
            self._switches[f"{name}.weight_quantizer"] = _Switch(layer.weight_quantizer, heads, layer)
        for name, quantizer in activation_quantizers(model):
            owner, _, role = name.rpartition(".")
            heads = None
            if role in QUANTIZED_TENSORS:
                heads = ScaleGroups(model.get_submodule(owner.rpartition(".")[0]).num_attention_heads, 1)
            elif role == "input_quantizer":
                heads = _heads(model, owner, {"o_proj": -1})
            self._switches[name] = _Switch(quantizer, heads)
        self._attentions = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, "attention_quantizers") and getattr(model, "_supports_sdpa", False)
        }
        self._float_configs = {id(module.config): _with_sdpa(module.config) for module in self._attentions.values()}

    @property
    def parts(self) -> frozenset[Part]:
        """Everything that can be switched."""
        return frozenset(part for name, switch in self._switches.items() for part in switch.parts(name))

    @contextmanager
    def quantizing(self, parts: Iterable[Part], *, fixed_weights: bool = False) -> Iterator[None]:
        """Quantize `parts` and nothing else while the context lasts.

        Args:
            parts: some of `self.parts`.
            fixed_weights: the weights do not change as long as this switchboard is used with this argument: each is
                quantized once for all contexts, which makes a forward pass cheaper. It then has no gradient.
        """
        by_quantizer: dict[str, list[int | None]] = {name: [] for name in self._switches}
        for part in parts:
            by_quantizer[part.quantizer].append(part.head)
        configs: list[tuple[nn.Module, Any]] = []
        try:
            for name, heads in by_quantizer.items():
                self._switches[name].set(heads, fixed_weights)
            # Attention that is not quantized need not spell out its probabilities.
            for name, attention in self._attentions.items():
                names = (f"{name}.attention_quantizers.{tensor}" for tensor in attention.attention_quantizers)
                if not any(by_quantizer[quantizer] for quantizer in names):
                    configs.append((attention, attention.config))
                    attention.config = self._float_configs[id(attention.config)]
            yield
        finally:
            for attention, config in configs:
                attention.config = config
            for switch in self._switches.values():
                switch.release()


class _Switch:
    def __init__(
        self,
        quantizer: WeightQuantizer | ActivationQuantizer,
        heads: ScaleGroups | None,
        layer: nn.Module | None = None,
    ):
        self.quantizer = quantizer
        self.heads = heads
        self.layer = layer
        self._fixed: Tensor | None = None

    def parts(self, name: str) -> list[Part]:
        return [Part(name)] if self.heads is None else [Part(name, head) for head in range(self.heads.count)]

    def set(self, heads: list[int | None], fixed_weights: bool) -> None:
        """Quantize the given heads (all if the quantizer has none and one entry stands for it)."""
        self.release()
        everything = len(heads) == (1 if self.heads is None else self.heads.count)
        quantize = self._fixed_weight if fixed_weights and self.layer is not None else None
        if not heads:
            self.quantizer.forward = _identity
        elif not everything:
            self.quantizer.forward = self._partly(heads, quantize or self.quantizer.forward)
        elif quantize is not None:
            self.quantizer.forward = quantize

    def release(self) -> None:
        """Give the quantizer its own forward back."""
        self.quantizer.__dict__.pop("forward", None)

    def _fixed_weight(self, weight: Tensor) -> Tensor:
        if self._fixed is None:
            with torch.no_grad():
                self._fixed = type(self.quantizer).forward(self.quantizer, weight)
        return self._fixed

    def _partly(self, heads: list[int | None], quantize: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        chosen = torch.zeros(self.heads.count, dtype=torch.bool)
        chosen[heads] = True

        def forward(x: Tensor) -> Tensor:
            return torch.where(self.heads.expand(chosen.to(x.device), x.shape), quantize(x), x)

        return forward


def _with_sdpa(config: Any) -> Any:
    config = copy.copy(config)
    config._attn_implementation = WITHOUT_QUANTIZERS
    return config


def _identity(x: Tensor) -> Tensor:
    return x


def _heads(model: nn.Module, layer: str, dimensions: dict[str, int]) -> ScaleGroups | None:
    parent, _, role = layer.rpartition(".")
    count = getattr(model.get_submodule(parent), "num_attention_heads", None)
    if role not in dimensions or count is None:
        return None
    return ScaleGroups(count, dimensions[role])
