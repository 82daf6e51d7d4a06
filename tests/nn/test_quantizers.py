import math

import pytest
import torch
from helpers import build, images

from hf_vaq import QuantConfig, is_calibrated, quantize
from hf_vaq.nn import ActivationQuantizer, QuantConv2d, QuantLinear, UncalibratedError, WeightQuantizer
from hf_vaq.nn.activation_statistics import ActivationStatistics
from hf_vaq.numerics.groups import ScaleGroups

ROWS_BY_HEAD, COLUMNS_BY_HEAD, BY_CHANNEL = ScaleGroups(2, 0), ScaleGroups(2, 1), ScaleGroups(6, 0)


def parts(weight, groups):
    """The weights of each group, cut out by hand."""
    if groups.count == 1:
        return [weight]
    return list(weight.chunk(groups.count, dim=groups.dim))


@pytest.mark.parametrize("groups", [ScaleGroups(), ROWS_BY_HEAD, COLUMNS_BY_HEAD, BY_CHANNEL])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_group_of_a_weight_is_quantized_with_its_own_scale(groups, bits):
    weight = torch.randn(6, 8) * torch.linspace(0.1, 3, 6)[:, None]
    quantizer = WeightQuantizer(bits, groups)
    quantizer.initialize(weight)
    scales = quantizer.scale(weight)
    assert scales.shape == (groups.count,)
    assert len(set(scales.tolist())) == groups.count
    qn, qp = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for part, codes, quantized, scale in zip(
        parts(weight, groups),
        parts(quantizer.codes(weight), groups),
        parts(quantizer(weight), groups),
        scales,
        strict=True,
    ):
        expected = torch.clamp(part / scale, qn, qp).round()
        assert torch.equal(codes.float(), expected)
        assert torch.equal(quantized, expected * scale)


@pytest.mark.parametrize("rule", ["l1", "numel"])
@pytest.mark.parametrize("groups", [ScaleGroups(), ROWS_BY_HEAD, COLUMNS_BY_HEAD, BY_CHANNEL])
def test_gradient_of_a_weight_scale_has_its_groups_own_factor(groups, rule):
    weight = torch.randn(6, 8)
    quantizer = WeightQuantizer(3, groups, scale_gradient=rule)
    quantizer.initialize(weight)
    quantizer(weight).sum().backward()
    for index, (part, scale) in enumerate(zip(parts(weight, groups), quantizer.scale(weight).detach(), strict=True)):
        v = part / scale
        slope = torch.where(v <= -4, -4.0, torch.where(v >= 3, 3.0, v.round() - v)).sum().item()
        magnitude = part.abs().sum().item() if rule == "l1" else part.numel()
        log_scale = quantizer.log_scale[index].item()
        chain = scale.item() * (1 - math.tanh(log_scale / 16) ** 2)  # derivative of exp(16 tanh(l / 16))
        expected = slope / math.sqrt(magnitude * 3) * chain
        assert quantizer.log_scale.grad[index].item() == pytest.approx(expected, rel=1e-4)


def test_statistics_scales_follow_the_weight_and_are_not_learned():
    quantizer = WeightQuantizer(3, BY_CHANNEL, learned=False)
    weight = torch.randn(6, 8, requires_grad=True)
    assert list(quantizer.parameters()) == []
    assert quantizer.scale(weight).tolist() == pytest.approx((2 * weight.abs().mean(1) / 4).tolist())
    quantizer(weight).sum().backward()
    inside = weight.detach().abs() < 3 * quantizer.scale(weight)[:, None]
    assert torch.equal(weight.grad[inside], torch.ones(int(inside.sum())))


def calibrated(x, **arguments):
    quantizer = ActivationQuantizer(**{"bits": 4, "groups": ScaleGroups(), **arguments})
    statistics = ActivationStatistics(quantizer.groups)
    statistics.update(x)
    quantizer.calibrate_from(statistics)
    return quantizer


@pytest.mark.parametrize("rule", ["l1", "numel"])
@pytest.mark.parametrize("groups", [ScaleGroups(), ScaleGroups(4, 1)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradient_of_an_activation_scale_equals_the_formula(bits, groups, rule):
    x = torch.randn(3, 4, 5, 6) * torch.linspace(0.5, 2, 4)[:, None, None]
    quantizer = calibrated(x, bits=bits, groups=groups, scale_gradient=rule)
    quantizer(x).sum().backward()
    qn, qp = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    heads = parts(x, groups) if groups.count > 1 else [x]
    for index, (part, scale) in enumerate(zip(heads, quantizer.scale().detach(), strict=True)):
        v = part / scale
        slope = torch.where(v <= qn, float(qn), torch.where(v >= qp, float(qp), v.round() - v)).sum().item()
        if rule == "numel":
            factor = 1 / math.sqrt(part.numel() * qp)
        elif groups.count == 1:
            factor = 1 / (math.sqrt(x.numel()) * qp)
        else:
            factor = 1 / math.sqrt(x.abs().sum().item() / 4 * qp)
        chain = scale.item() * (1 - math.tanh(quantizer.log_scale[index].item() / 16) ** 2)
        expected = slope * factor * chain
        assert quantizer.log_scale.grad[index].item() == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_offset_of_unsigned_codes_is_calibrated_to_the_lower_end_of_gelu_and_learned():
    x = torch.nn.functional.gelu(torch.randn(50, 64) * 2)
    quantizer = calibrated(x, bits=4, signed=False, with_offset=True)
    assert -0.4 < quantizer.offset.item() < 0
    error = (quantizer(x) - x).pow(2).mean()
    signed = calibrated(x, bits=4)
    assert error < (signed(x) - x).pow(2).mean()
    error.backward()
    assert quantizer.offset.grad.abs().item() > 0


def test_an_uncalibrated_quantizer_refuses_to_evaluate_and_calibrates_itself_in_training():
    x = torch.randn(4, 10)
    quantizer = ActivationQuantizer(4, ScaleGroups()).eval()
    with pytest.raises(UncalibratedError, match=r"hf_vaq\.calibrate"):
        quantizer(x)
    quantizer.train()(x)
    assert quantizer.is_calibrated()
    torch.testing.assert_close(quantizer.scale(), calibrated(x).scale())
    assert torch.equal(quantizer.eval()(x), quantizer.train()(x))


def test_quantized_linear_and_convolution_compute_with_quantized_operands():
    x = torch.randn(2, 3, 8, 8)
    linear, conv = QuantLinear(8, 6), QuantConv2d(3, 5, 4, stride=4)
    for layer, function in (
        (linear, lambda w, i: torch.nn.functional.linear(i, w, linear.bias)),
        (conv, lambda w, i: torch.nn.functional.conv2d(i, w, conv.bias, stride=4)),
    ):
        assert torch.equal(layer(x), function(layer.weight, x))
        layer.weight_quantizer = WeightQuantizer(2, ScaleGroups())
        layer.weight_quantizer.initialize(layer.weight)
        layer.input_quantizer = calibrated(x)
        assert torch.equal(layer(x), function(layer.weight_quantizer(layer.weight), layer.input_quantizer(x)))


def test_quantizers_put_into_a_model_take_its_mode():
    for training in (True, False):
        model = build("vit").train(training)
        quantize(model, QuantConfig(weight_bits=4, activation_bits=4))
        assert {module.training for module in model.modules()} == {training}
    with pytest.raises(UncalibratedError), torch.no_grad():
        model(pixel_values=images())
    assert not is_calibrated(model)
