"""The regularizer of a model and the schedule of its weight."""

import pytest
import torch
from training_helpers import tiny_quantized_vit, tiny_vit

from hf_vaq.training import cosine_ramp, model_bin_regularizer


def test_the_ramp_at_its_start_middle_and_end():
    assert cosine_ramp(0.0, 0.01) == 0
    assert cosine_ramp(0.25, 0.01) == 0
    assert cosine_ramp(0.625, 0.01) == pytest.approx(0.005)
    assert cosine_ramp(1.0, 0.01) == pytest.approx(0.01)
    assert cosine_ramp(0.25 + 0.75 / 3, 0.01) == pytest.approx(0.0025)  # cos(pi / 3) = 1 / 2
    assert cosine_ramp(0.5, 2.0, start=0.0) == pytest.approx(1.0)


def test_the_ramp_never_falls():
    values = [cosine_ramp(i / 100, 1.0) for i in range(101)]
    assert values == sorted(values)


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel"])
def test_a_model_gives_the_sum_over_its_layers_of_the_loop_over_groups_and_bins(granularity):
    model = tiny_quantized_vit(weight_granularity=granularity)
    expected, layers = 0.0, 0
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is None:
            continue
        layers += 1
        weight, low, high = (
            module.weight.detach().double(),
            -(2 ** (quantizer.bits - 1)),
            2 ** (quantizer.bits - 1) - 1,
        )
        if granularity == "head" and name.endswith("o_proj"):
            weight = weight.T  # heads are columns of the output projection
        rows = weight.reshape(quantizer.groups.count, -1)
        for row, s in zip(rows, quantizer.scale(module.weight).double(), strict=True):
            codes = (row / s).round().clamp(low, high)
            distance = (row.clamp(low * s, high * s) - codes * s).square().mean()
            bins = [row[codes == code] for code in codes.unique()]
            expected += (distance + sum(members.var() for members in bins if len(members) > 1)).item() / len(rows)
    assert layers == 14, "two blocks of six linears, patch embedding, classifier"
    assert model_bin_regularizer(model).item() == pytest.approx(expected, rel=1e-5)


def test_only_latent_weights_get_a_gradient():
    model = tiny_quantized_vit()
    model_bin_regularizer(model).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "vit.layers.0.attention.q_proj.weight" in moved
    assert all(name.endswith(".weight") for name in moved)


def test_a_model_without_quantized_weights_gives_zero():
    assert torch.equal(model_bin_regularizer(tiny_vit()), torch.zeros(()))
