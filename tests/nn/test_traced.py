"""Quantizers of a model that is compiled as a whole against the reference arithmetic, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vaq.nn import traced
from hf_vaq.nn.fused_layers import Scaled
from hf_vaq.numerics.fake_quantize import fake_quantize
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.levels import integer_range
from hf_vaq.numerics.log_scale import log_from_scale, scale_from_log
from hf_vaq.numerics.quantization import Quantization

FACTOR = "numel"
SCALES = {"weight": 0.11, "turned": 0.11, "rows": 0.3, "heads": 0.3, "gelu": 0.1, "plain": 0.02, "masked": 0.02}
OFFSETS = {"gelu": -0.1}


def quantization(name: str) -> Quantization:
    return Quantization(4, ScaleGroups(), signed=name not in ("gelu", "plain", "masked"), factor=FACTOR)


def scaled(name: str, log_scale: Tensor, offset: Tensor | None) -> Scaled:
    return Scaled(log_scale, scale_from_log(log_scale.detach()), offset, quantization(name))


def reference(name: str, x: Tensor, log_scale: Tensor, offset: Tensor | None) -> Tensor:
    rule = quantization(name)
    factor = (x.numel() * integer_range(4, rule.signed)[1]) ** -0.5
    scale = scale_from_log(log_scale)
    return fake_quantize(x, scale, 4, signed=rule.signed, offset=offset, gradient_factor=factor)


def ours(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    of = {name: scaled(name, leaves[f"{name} scale"], leaves.get(f"{name} offset")) for name in SCALES}
    return {
        "weight": traced.quantize(leaves["weight"], of["weight"], written=True),
        "turned": traced.quantize(leaves["turned"].t(), of["turned"], written=True),
        "rows": traced.quantize(leaves["rows"], of["rows"]),
        "heads": traced.quantize(leaves["heads"].transpose(1, 2), of["heads"]),
        "gelu": traced.quantize_gelu(leaves["gelu"], of["gelu"]),
        "plain": traced.quantize_softmax(leaves["scores"], None, 0.7, of["plain"]),
        "masked": traced.quantize_softmax(leaves["scores"], leaves["mask"], 0.7, of["masked"]),
    }


def expected(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    values = {
        "weight": leaves["weight"],
        "turned": leaves["turned"].t(),
        "rows": leaves["rows"],
        "heads": leaves["heads"].transpose(1, 2),
        "gelu": F.gelu(leaves["gelu"]),
        "plain": (leaves["scores"] * 0.7).softmax(-1),
        "masked": (leaves["scores"] * 0.7 + leaves["mask"]).softmax(-1),
    }
    return {
        name: reference(name, x, leaves[f"{name} scale"], leaves.get(f"{name} offset")) for name, x in values.items()
    }


def make_leaves() -> dict[str, Tensor]:
    torch.manual_seed(0)
    leaves = {
        "weight": 0.4 * torch.randn(24, 40),
        "turned": 0.4 * torch.randn(24, 40),
        "rows": torch.randn(2, 5, 24),
        "heads": torch.randn(2, 5, 3, 16),
        "gelu": torch.randn(2, 5, 32),
        "scores": torch.randn(2, 3, 5, 21),
        "mask": torch.randn(1, 3, 5, 21),
    }
    leaves |= {f"{name} scale": log_from_scale(torch.tensor([value])) for name, value in SCALES.items()}
    leaves |= {f"{name} offset": torch.tensor([value]) for name, value in OFFSETS.items()}
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


@pytest.fixture(scope="module")
def compiled_and_expected() -> tuple[dict[str, Tensor], ...]:
    leaves = make_leaves()
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing here, but the way that is taken
        results = torch.compile(ours, fullgraph=True)(leaves)
    references = expected(leaves)
    found = []
    for values in (results, references):
        # The gradient of what is written lies in memory otherwise than the values.
        torch.manual_seed(1)
        towards = {
            name: torch.randn(value.shape[::-1]).permute(*reversed(range(value.dim())))
            for name, value in values.items()
        }
        loss = sum((value * towards[name]).sum() for name, value in values.items())
        found.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
    return results, references, *found


@pytest.mark.parametrize("name", SCALES)
def test_compiled_values_are_those_of_the_reference(compiled_and_expected, name):
    results, references, _, _ = compiled_and_expected
    torch.testing.assert_close(results[name], references[name], rtol=1e-5, atol=1e-6)
    assert references[name].unique().numel() > 4


@pytest.mark.parametrize("name", make_leaves())
def test_compiled_gradients_are_those_of_the_reference(compiled_and_expected, name):
    _, _, gradients, references = compiled_and_expected
    torch.testing.assert_close(gradients[name], references[name], rtol=1e-4, atol=1e-6)
    assert references[name].abs().max() > 1e-4


def test_only_a_calibrated_quantizer_with_one_scale_that_nobody_watches_is_replaced():
    from hf_vaq.nn.activation_quantizer import ActivationQuantizer

    quantizer = ActivationQuantizer(4, ScaleGroups())
    assert not traced.may_replace(quantizer)
    quantizer.calibrated.fill_(True)
    assert traced.may_replace(quantizer)
    quantizer.register_forward_hook(lambda *args: None)
    assert not traced.may_replace(quantizer)
    assert not traced.may_replace(None)
    of_heads = ActivationQuantizer(4, ScaleGroups(3, 1))
    of_heads.calibrated.fill_(True)
    assert not traced.may_replace(of_heads)
