"""The regularizer of a model and the schedule of its weight."""

import pytest
import torch
from training_helpers import tiny_quantized_vit, tiny_vit

from hf_vaq.nn import weight_quantized_modules
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.numerics import native
from hf_vaq.training import cosine_ramp, model_bin_regularizer
from hf_vaq.training.latent_weights import latent_weights
from hf_vaq.training.regularization import add_regularizer_gradient


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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "head", "channel"])
def test_after_the_backward_pass_the_same_gradient_is_added(granularity, fused):
    model = tiny_quantized_vit(weight_granularity=granularity)
    layer = model.get_submodule("vit.layers.0.mlp.fc1")
    frozen = model.get_submodule("vit.layers.1.mlp.fc1")
    frozen.weight.requires_grad_(False)
    expected = model_bin_regularizer(model)
    (0.3 * expected).backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    layer.weight.grad = torch.ones_like(layer.weight)
    wanted["vit.layers.0.mlp.fc1.weight"] += 1
    set_fusion(model, fused)
    value = add_regularizer_gradient(model, 0.3)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5) and not value.requires_grad
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-7, msg=name)


def test_without_quantized_weights_nothing_is_added():
    model = tiny_vit()
    assert add_regularizer_gradient(model, 0.3) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("scale", ["learned", "statistics"])
def test_kernels_get_the_scales_that_the_layers_use(scale):
    model = tiny_quantized_vit(weight_granularity="head", weight_scale=scale)
    modules = [module for _, module in weight_quantized_modules(model)]
    assert latent_weights(modules) is None, "not fused"
    set_fusion(model, True)
    if not native.can_run([module.weight for module in modules]):
        pytest.skip("needs a C++ compiler")
    for module, weight in zip(modules, latent_weights(modules), strict=True):
        assert weight.values.data_ptr() == module.weight.data_ptr()
        assert torch.equal(weight.scale, module.weight_quantizer.scale(module.weight))
