"""A model that is compiled as a whole, with gradients from codes, against the same model in eager mode.

The operators do without AMX too, so these tests run everywhere; with it, by the kernels.
"""

import pytest
import torch
from helpers import build, images
from torch._inductor.utils import run_and_get_code

from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.nn import coded
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.numerics.native import products
from hf_vaq.numerics.quantization import FACTORS, Quantization, ScaleGroups

SIZES = {"vit": {"num_hidden_layers": 1}, "swin": {"drop_path_rate": 0.0, "depths": [1], "num_heads": [2]}}


@pytest.fixture(autouse=True)
def _by_codes(monkeypatch):
    monkeypatch.setattr(coded, "HAS_TILES", True)
    # The models are small.
    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "FEW", 1)
    yield
    torch._dynamo.reset()


def quantized(family="vit", **settings):
    model = build(family, **SIZES[family])
    quantize(model, QuantConfig(weight_bits=4, activation_bits=4, **settings))
    calibrate(model, [images()])
    set_fusion(model, False)
    return model.train()


def gradients(model, forward, of_attentions=False):
    model.zero_grad()
    output = forward(pixel_values=images(), output_attentions=of_attentions)
    loss = output.logits.square().sum()
    if of_attentions:
        loss = loss + 10 * output.attentions[0].square().sum()
    loss.backward()
    return output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted):
    torch.testing.assert_close(found[0], wanted[0])
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5, name


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("vit", {"weight_granularity": "head", "activation_granularity": "head"}),
        ("vit", {"weight_scale": "statistics"}),
        ("swin", {}),
    ],
)
def test_gradients_are_those_of_eager_mode(family, settings):
    model = quantized(family, **settings)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(gradients(model, whole), gradients(model, model))


def test_a_loss_on_the_attention_probabilities_gets_its_gradient_too():
    model = quantized()
    wanted = gradients(model, model, True)  # first: transformers' hooks that note the probabilities cannot be traced
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(gradients(model, whole, True), wanted)


def test_the_compiler_calls_the_operators_and_nothing_of_the_general_path():
    model = quantized()
    found, code = run_and_get_code(lambda: gradients(model, torch.compile(model, fullgraph=True)))
    code = "".join(code)
    for name in ("linear_parameter_gradients", "linear_input_gradients", "attention_gradients"):
        assert f"hf_vaq.{name}" in code
    assert code.count("extern_kernels.bmm(") == 2  # scores and output: the probabilities are not computed twice
    assert_same(found, gradients(model, model))


def test_a_quantizer_with_a_hook_is_left_to_the_general_path():
    layer = quantized().vit.layers[0].mlp.fc1
    assert layer.coded_operands(torch.ones(1)) is not None
    hook = layer.weight_quantizer.register_forward_hook(lambda *_: None)
    assert layer.coded_operands(torch.ones(1)) is None
    hook.remove()
    layer.input_quantizer.register_forward_hook(lambda *_: None)
    assert layer.coded_operands(torch.ones(1)) is None


def test_the_numbers_of_a_quantization_say_all_of_it():
    for factor in FACTORS:
        quantization = Quantization(3, ScaleGroups(4, -1), False, factor, factor == "l1")
        assert Quantization.from_numbers(quantization.numbers()) == quantization
