"""Switching quantizers on and off, whole and head by head."""

import pytest
import torch
from helpers import build, images

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.analysis import Part, Switchboard

ATTENTION = "vit.layers.1.attention"


@pytest.fixture(scope="module")
def quantized():
    model = hf_vaq.quantize(build("vit"), QuantConfig(weight_bits=3, activation_bits=3))
    hf_vaq.calibrate(model, [images()])
    return model


def logits(model, pixel_values):
    with torch.no_grad():
        return model(pixel_values=pixel_values).logits


def test_nothing_quantized_is_the_float_model_and_everything_is_the_quantized_one(quantized):
    board, x = Switchboard(quantized), images(3, seed=1)
    with board.quantizing([]):
        assert torch.equal(logits(quantized, x), logits(build("vit"), x))
    everything = logits(quantized, x)
    for fixed in (False, True):
        with board.quantizing(board.parts, fixed_weights=fixed):
            assert torch.equal(logits(quantized, x), everything)
    assert torch.equal(logits(quantized, x), everything)


def test_an_error_inside_leaves_the_model_as_it_was(quantized):
    board, x = Switchboard(quantized), images(3, seed=1)
    before, config = logits(quantized, x), quantized.get_submodule(ATTENTION).config
    with pytest.raises(ZeroDivisionError), board.quantizing([]):
        raise ZeroDivisionError
    assert torch.equal(logits(quantized, x), before)
    assert quantized.get_submodule(ATTENTION).config is config


@pytest.mark.parametrize("fixed", [False, True])
def test_only_the_rows_of_a_head_are_quantized(quantized, fixed):
    board, layer = Switchboard(quantized), quantized.get_submodule(f"{ATTENTION}.q_proj")
    full = layer.weight_quantizer(layer.weight)
    with board.quantizing([Part(f"{ATTENTION}.q_proj.weight_quantizer", 1)], fixed_weights=fixed):
        weight = layer.weight_quantizer(layer.weight)
    assert torch.equal(weight[16:], full[16:])
    assert torch.equal(weight[:16], layer.weight[:16])


def test_only_the_columns_of_a_head_are_quantized_in_the_output_projection(quantized):
    board, layer = Switchboard(quantized), quantized.get_submodule(f"{ATTENTION}.o_proj")
    weight, x = layer.weight, torch.randn(2, 5, 32)
    full_weight, full_x = layer.weight_quantizer(weight), layer.input_quantizer(x)
    with board.quantizing(
        [Part(f"{ATTENTION}.o_proj.weight_quantizer", 0), Part(f"{ATTENTION}.o_proj.input_quantizer", 0)]
    ):
        assert torch.equal(layer.weight_quantizer(weight)[:, :16], full_weight[:, :16])
        assert torch.equal(layer.weight_quantizer(weight)[:, 16:], weight[:, 16:])
        assert torch.equal(layer.input_quantizer(x)[..., :16], full_x[..., :16])
        assert torch.equal(layer.input_quantizer(x)[..., 16:], x[..., 16:])


def test_only_the_queries_of_a_head_are_quantized(quantized):
    board, quantizer = Switchboard(quantized), quantized.get_submodule(ATTENTION).attention_quantizers["query"]
    x = torch.randn(2, 2, 5, 16)
    full = quantizer(x)
    with board.quantizing([Part(f"{ATTENTION}.attention_quantizers.query", 1)]):
        y = quantizer(x)
    assert torch.equal(y[:, 1], full[:, 1]) and torch.equal(y[:, 0], x[:, 0])


def test_gradients_reach_the_weights_through_every_switch(quantized):
    board = Switchboard(quantized)
    parts = [Part(f"{ATTENTION}.q_proj.weight_quantizer", 1), Part("classifier.weight_quantizer")]
    with board.quantizing(parts):
        quantized(pixel_values=images(2)).logits.sum().backward()
    layers = dict(quantized.named_modules())
    assert layers[f"{ATTENTION}.q_proj"].weight.grad.abs().sum() > 0
    assert layers[f"{ATTENTION}.q_proj"].weight_quantizer.log_scale.grad is not None
    assert layers[f"{ATTENTION}.k_proj"].weight.grad.abs().sum() > 0
    assert layers[f"{ATTENTION}.k_proj"].weight_quantizer.log_scale.grad is None
    quantized.zero_grad()
