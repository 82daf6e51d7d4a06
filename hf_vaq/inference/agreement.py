"""How far integer execution agrees with the simulation: the share of differing codes, tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..nn import PackedActivationQuantizer, PackedWeight
from ..nn.attention import QUANTIZED_TENSORS
from .codes import CENTER, byte_codes, from_centered
from .execution import set_execution

CENTERED = QUANTIZED_TENSORS[:3]  # queries, keys, values

Visitor = Callable[[str, PackedActivationQuantizer, Tensor, bool], Tensor]


@dataclass(frozen=True)
class CodeAgreement:
    """Codes of the two executions compared.

    Attributes:
        differing: how many codes differ, by the name of the tensor.
        total: how many codes were compared, by the name of the tensor.
        logits_difference: largest absolute difference of a logit.
    """

    differing: dict[str, int]
    total: dict[str, int]
    logits_difference: float

    def shares(self) -> dict[str, float]:
        """Share of differing codes of every tensor, in the order of the model."""
        return {name: self.differing[name] / self.total[name] for name in self.total}

    @property
    def share(self) -> float:
        """Share of differing codes of all tensors together."""
        return sum(self.differing.values()) / sum(self.total.values())


@torch.inference_mode()
def code_agreement(model: PreTrainedModel, pixel_values: Tensor, *, propagate: bool = False) -> CodeAgreement:
    """Run a packed model in integers and in simulation, and compare the codes that enter every layer.

    Both round the same real number to a code; where it lies on the border of two codes, up to the rounding of float32
    sums, they may choose differently. By default each layer is compared on equal ground: what it receives are the
    codes of the simulation. With `propagate` nothing is replaced, so that a code which differs changes what follows.

    Hooks see what passes between the modules, so the modules compute here, and not the kernel of a whole layer; both
    do the same operations, and the tests compare them.

    Compared are the inputs of all layers that are executed in integers, and queries, keys and values. The attention
    probabilities live inside a kernel; an error there would show in the input of the output projection.

    Args:
        model: a packed model; it is left as it is.
        pixel_values: (batch, channels, height, width).
        propagate: see above.

    Raises:
        ValueError: if the model is not executed in integers where it is.
    """
    if not getattr(model, "execution", "").startswith("integer"):
        raise ValueError(f"model.execution is {getattr(model, 'execution', None)!r}: expected integer execution.")
    reference: dict[str, Tensor] = {}
    differing: dict[str, int] = {}

    def record(name: str, quantizer: PackedActivationQuantizer, x: Tensor, centered: bool) -> Tensor:
        reference[name] = _codes(quantizer, x, centered)
        return x

    def compare(name: str, quantizer: PackedActivationQuantizer, x: Tensor, centered: bool) -> Tensor:
        codes, wanted = _codes(quantizer, x, centered), reference[name]
        differing[name] = int((codes != wanted).sum())
        return x if propagate else wanted

    simulated = set_execution(copy.deepcopy(model), "simulation").eval()
    _visit(simulated, _integer_tensors(model), record)
    expected = simulated(pixel_values=pixel_values).logits
    integer = copy.deepcopy(model).eval()
    _visit(integer, _integer_tensors(model), compare)
    logits = integer(pixel_values=pixel_values).logits
    total = {name: codes.numel() for name, codes in reference.items()}
    return CodeAgreement(differing, total, float((logits - expected).abs().max()))


def _codes(quantizer: PackedActivationQuantizer, x: Tensor, centered: bool) -> Tensor:
    """Bytes in the form in which an engine takes them."""
    if not centered:
        return x if x.dtype is torch.uint8 else byte_codes(quantizer, x)
    return (from_centered(quantizer, x) + CENTER).to(torch.uint8)


def _integer_tensors(model: nn.Module) -> set[str]:
    """Names of the modules with an engine that reads codes."""
    names = set()
    for name, module in model.named_modules():
        reads = isinstance(module, PackedWeight | PackedActivationQuantizer) and module.engine is not None
        if (reads and getattr(module, "input_quantizer", module) is not None) or (
            getattr(module, "attention_engine", None) is not None
        ):
            names.add(name)
    return names


def _visit(model: nn.Module, names: set[str], visit: Visitor) -> None:
    """Let `visit` see, and replace, the tensors that enter the modules called `names`."""
    for name, module in model.named_modules():
        if name not in names:
            continue
        if isinstance(module, PackedActivationQuantizer):
            module.register_forward_pre_hook(_input_hook(name, module, visit))
        elif isinstance(module, PackedWeight):
            module.register_forward_pre_hook(_input_hook(name, module.input_quantizer, visit))
        elif getattr(module, "attention_engine", None) is not None:
            module.attention_engine.register_forward_pre_hook(_attention_hook(name, visit))
        else:
            for tensor in CENTERED:
                quantizer = module.attention_quantizers[tensor]
                quantizer.register_forward_pre_hook(_input_hook(f"{name}.{tensor}", quantizer, visit, centered=True))


def _input_hook(
    name: str, quantizer: PackedActivationQuantizer, visit: Visitor, centered: bool = False
) -> Callable[[nn.Module, tuple], tuple]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (visit(name, quantizer, args[0], centered), *args[1:])

    return hook


def _attention_hook(name: str, visit: Visitor) -> Callable[[nn.Module, tuple], tuple]:
    def hook(engine: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        module, *tensors = args[:4]
        quantizers = module.attention_quantizers
        replaced = [visit(f"{name}.{t}", quantizers[t], x, True) for t, x in zip(CENTERED, tensors, strict=True)]
        return (module, *replaced, *args[4:])

    return hook
