"""The float model that a quantized one is compared with."""

import pytest
import torch
from helpers import build, images

import hf_vaq
from hf_vaq.nn import PackedLinear, QuantLinear
from hf_vaq.speed import float_twin, pixel_values


@pytest.fixture(params=["deit", "swin", "deit_two_heads"])
def trained(request):
    config = hf_vaq.QuantConfig(weight_bits=3, activation_bits=3)
    model = hf_vaq.quantize(build(request.param), config)
    hf_vaq.calibrate(model, [images()])
    return model, build(request.param)


def test_the_twin_of_a_training_form_is_the_model_before_quantization(trained):
    model, stock = trained
    twin = float_twin(model)
    assert not any(isinstance(module, QuantLinear) for module in twin.modules())
    assert not hasattr(twin.config, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(twin(images()).logits, stock(images()).logits)


def test_the_twin_of_a_packed_model_has_its_dequantized_weights(trained):
    model, stock = trained
    packed = hf_vaq.pack(model)
    twin = float_twin(packed)
    names = [name for name, module in packed.named_modules() if isinstance(module, PackedLinear)]
    assert names
    for name in names:
        layer = packed.get_submodule(name)
        scale = layer.groups.expand(layer.weight_scale, layer.shape)
        assert torch.equal(twin.get_submodule(name).weight, layer.codes().float() * scale)
        assert not torch.equal(twin.get_submodule(name).weight, stock.get_submodule(name).weight)
    assert {name: value.shape for name, value in twin.state_dict().items()} == {
        name: value.shape for name, value in stock.state_dict().items()
    }
    # the packed model is as it was
    assert packed.config.quantization_config.packed and packed.config._attn_implementation != "sdpa"


def test_images_have_the_size_that_the_model_takes():
    assert pixel_values(build("vit"), 5).shape == (5, 3, 32, 32)
    assert torch.equal(pixel_values(build("vit"), 2), pixel_values(build("vit"), 2))
