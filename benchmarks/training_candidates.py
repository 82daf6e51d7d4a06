"""The ways to train that `training_step.py` compares, and one training step of each."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
)

from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.machine import processor_vendor
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.numerics.compiled import uncompiled
from hf_vaq.training.oscillation import OscillationTracker
from hf_vaq.training.regularization import add_regularizer_gradient

BATCH_SIZE = {"deit-t": 16, "swin-t": 4}
REFERENCE = "float32"
VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}


def results_name() -> str:
    """Of the results file: ratios differ by processor, so that those of each kind are kept."""
    return f"training_step_{VENDORS.get(processor_vendor(), platform.machine())}"


@dataclass(frozen=True)
class Candidate:
    """One way to train.

    Attributes:
        bits: of weights and activations; None for full precision.
        peer: library that quantizes, instead of ours.
        fused: whether our quantizers are fused.
        compiled: whether `torch.compile` gets the whole model.
        autocast: whether the forward pass runs under bfloat16 autocast.
        regularized: with bin regularizer and oscillation tracker.
        no_compiler: as where there is none.
    """

    bits: int | None = None
    peer: str | None = None
    fused: bool = True
    compiled: bool = False
    autocast: bool = False
    regularized: bool = False
    no_compiler: bool = False


def candidates() -> dict[str, Candidate]:
    """All of them by name."""
    found = {
        REFERENCE: Candidate(),
        "float32, compiled": Candidate(compiled=True),
        "float32, bf16 autocast": Candidate(autocast=True),
        "float32, compiled, bf16 autocast": Candidate(compiled=True, autocast=True),
    }
    for bits in (4, 2):
        for regularized in (False, True):
            name = f"W{bits}A{bits}" + (", regularized" if regularized else "")
            found[name] = Candidate(bits, regularized=regularized)
            found[f"{name}, compiled"] = Candidate(bits, compiled=True, regularized=regularized)
            found[f"{name}, bf16 autocast"] = Candidate(bits, autocast=True, regularized=regularized)
            found[f"{name}, compiled, bf16 autocast"] = Candidate(
                bits, compiled=True, autocast=True, regularized=regularized
            )
    found["W4A4, not fused"] = Candidate(4, fused=False)
    found["W4A4, no compiler"] = Candidate(4, no_compiler=True)
    found["W4A4, regularized, no compiler"] = Candidate(4, regularized=True, no_compiler=True)
    for peer in PEERS:
        found[peer] = Candidate(peer=peer)
    return found


class TrainingStep:
    """One training step of a candidate, on a fixed random batch: forward, backward, AdamW.

    Args:
        name: of the model, a key of `BATCH_SIZE`.
        candidate: how it is trained.
    """

    def __init__(self, name: str, candidate: Candidate):
        self.candidate = candidate
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.randn(BATCH_SIZE[name], 3, 224, 224, generator=generator)
        self.labels = torch.randint(0, 1000, (BATCH_SIZE[name],), generator=generator)
        # With and without regularizer the same model is trained: it need not be compiled twice.
        self.model, self.forward, self.optimizer = _trainable(name, replace(candidate, regularized=False))
        self.tracker = OscillationTracker()
        if candidate.regularized:
            self.tracker.start(self.model)

    def __call__(self) -> float:
        """Train; return the loss."""
        with uncompiled() if self.candidate.no_compiler else nullcontext():
            return self._train()

    def _train(self) -> float:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.candidate.autocast):
            loss = self.forward(pixel_values=self.pixel_values, labels=self.labels).loss
        loss.backward()
        if self.candidate.regularized:
            add_regularizer_gradient(self.model, 0.01)
        self.optimizer.step()
        if self.candidate.regularized:
            self.tracker.update(self.model)
        return loss.item()

    def persistent_bytes(self) -> int:
        """Of parameters, optimizer states and tracker."""
        return sum(3 * p.numel() * p.element_size() for p in self.model.parameters()) + self.tracker.nbytes


def forget_models() -> None:
    """Free what all steps made so far trained, as soon as they are gone themselves."""
    _trainable.cache_clear()
    torch._dynamo.reset()


@cache
def _trainable(name: str, candidate: Candidate) -> tuple[nn.Module, Callable, torch.optim.Optimizer]:
    model = _build(name)
    if candidate.peer is not None:
        model = PEERS[candidate.peer](model)
    elif candidate.bits is not None:
        quantize(model, QuantConfig(weight_bits=candidate.bits, activation_bits=candidate.bits))
        calibrate(model, [torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))])
        set_fusion(model, candidate.fused)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # the default of transformers' Trainer
    return model, torch.compile(model) if candidate.compiled else model, optimizer


def _build(name: str) -> PreTrainedModel:
    """The float32 model with random weights."""
    torch.manual_seed(0)
    if name == "deit-t":
        config = DeiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
        return DeiTForImageClassification(config)
    return SwinForImageClassification(SwinConfig(num_labels=1000, drop_path_rate=0.0))


def torchao(model: PreTrainedModel) -> nn.Module:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    activations = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weights = IntxFakeQuantizeConfig(torch.int4, group_size=32)
    quantize_(model, QATConfig(activation_config=activations, weight_config=weights, step="prepare"))
    return model


def brevitas(model: PreTrainedModel) -> nn.Module:
    from brevitas.core.scaling import ScalingImplType
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat

    class Weights(Int8WeightPerTensorFloat):
        bit_width = 4
        scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS

    class Activations(Int8ActPerTensorFloat):
        bit_width = 4

    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            quantized = QuantLinear(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                weight_quant=Weights,
                input_quant=Activations,
            )
            with torch.no_grad():
                quantized.weight.copy_(layer.weight)
            model.set_submodule(name, quantized)
    return model


PEERS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {"torchao": torchao, "brevitas": brevitas}
