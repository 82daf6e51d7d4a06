"""One prepared integer product against float64."""

import pytest
import torch
from torch import nn

from hf_vaq.inference.backends import has_integer_instructions
from hf_vaq.inference.codes import byte_codes
from hf_vaq.inference.gemm import IntegerGemm, ScaledWeight
from hf_vaq.nn import PackedActivationQuantizer, WeightQuantizer
from hf_vaq.nn.packed import packed_like
from hf_vaq.numerics.groups import ScaleGroups

BACKENDS = [
    pytest.param(
        "onednn", marks=pytest.mark.skipif(not has_integer_instructions(), reason="needs a CPU with VNNI or AMX")
    ),
    "int_mm",
]


def layer_of(inputs, outputs, bits, groups, bias=True):
    linear = nn.Linear(inputs, outputs, bias)
    quantizer = WeightQuantizer(bits, groups)
    quantizer.initialize(linear.weight)
    layer = packed_like(linear, bits, groups)
    layer.load(linear.weight, quantizer, linear.bias)
    return layer


def quantizer_of(bits, groups, signed=True, offset=False):
    quantizer = PackedActivationQuantizer(bits, groups, signed, offset)
    quantizer.scale.copy_(torch.rand(groups.count) * 0.1 + 0.05)
    if offset:
        quantizer.offset.copy_(torch.randn(groups.count))
    return quantizer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize(
    "weight_groups, input_groups, signed, offset",
    [
        (ScaleGroups(), ScaleGroups(), True, False),
        (ScaleGroups(10, 0), ScaleGroups(), False, True),
        (ScaleGroups(3, 1), ScaleGroups(3, -1), True, False),
        (ScaleGroups(5, 0), ScaleGroups(3, -1), False, True),
        (ScaleGroups(3, 1), ScaleGroups(), True, False),
    ],
)
def test_the_product_is_that_of_the_dequantized_operands(backend, rows, weight_groups, input_groups, signed, offset):
    torch.manual_seed(0)
    layer, quantizer = layer_of(36, 10, 4, weight_groups), quantizer_of(8, input_groups, signed, offset)
    x = torch.randn(2, rows, 36) * 3
    found = IntegerGemm([ScaledWeight.of(layer)], quantizer, backend)(byte_codes(quantizer, x))
    wanted = quantizer.simulate(x).double() @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_layers_become_one_product(backend):
    torch.manual_seed(0)
    quantizer = quantizer_of(3, ScaleGroups())
    layers = [layer_of(24, 8, 2, ScaleGroups()), layer_of(24, 12, 8, ScaleGroups(2, 0), bias=False)]
    codes = byte_codes(quantizer, torch.randn(5, 24))
    together = IntegerGemm([ScaledWeight.of(layer) for layer in layers], quantizer, backend)(codes)
    apart = [IntegerGemm([ScaledWeight.of(layer)], quantizer, backend)(codes) for layer in layers]
    assert torch.equal(together, torch.cat(apart, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_as_bytes_are_rounded_and_centered(backend):
    torch.manual_seed(0)
    layer, quantizer = layer_of(24, 8, 4, ScaleGroups()), quantizer_of(4, ScaleGroups())
    codes = byte_codes(quantizer, torch.randn(100, 24))
    step = torch.rand(8) * 0.004 + 0.002
    numbers = IntegerGemm([ScaledWeight.of(layer)], quantizer, backend)(codes)
    found = IntegerGemm([ScaledWeight.of(layer)], quantizer, backend, step)(codes)
    wanted = ((numbers / step).round() + 128).clamp(0, 255)
    assert found.dtype is torch.uint8 and (wanted == 0).any() and (wanted == 255).any()
    assert ((found - wanted).abs() <= 1).all() and (found != wanted).double().mean() < 1e-2


def test_sums_beyond_the_exact_range_of_float32_stay_exact():
    """8-bit codes at their limits: 255 x 128 x 1024 lies beyond 2^24."""
    layer = packed_like(nn.Linear(1025, 8, bias=False), 8, ScaleGroups())
    layer.weight_codes.fill_(0)  # codes -128
    layer.weight_codes[0] = 127  # one of them -1
    quantizer = PackedActivationQuantizer(8, ScaleGroups(), False)
    codes = torch.full((20, 1025), 255, dtype=torch.uint8)
    sums = IntegerGemm([ScaledWeight.of(layer)], quantizer, "int_mm")(codes)
    exact = -255 * (128 * 1024 + 1)
    assert sums[0, 0] == torch.tensor(exact).float() and exact != -255 * 128 * 1025


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_number_of_features_is_named(backend):
    gemm = IntegerGemm([ScaledWeight.of(layer_of(24, 8, 4, ScaleGroups()))], quantizer_of(4, ScaleGroups()), backend)
    with pytest.raises(ValueError, match="input has 16 features, expected 24"):
        gemm(torch.zeros(2, 16, dtype=torch.uint8))
