"""NaN in, NaN out: codes have no value for it."""

import math

import pytest
import torch
from helpers import images
from inference_helpers import logits, packed, trained

from hf_vaq.inference import set_execution
from hf_vaq.inference.codes import mark_nan

FAMILIES = ["deit", "swin", "beit", "dinov2", "dinov2_swiglu"]


def one_spoilt(model):
    """Four images, one of which has a NaN pixel."""
    x = images(4, size=model.config.image_size)
    x[2, 1, 5, 9] = math.nan
    return x


@pytest.mark.parametrize("execution, backend", [("auto", "onednn"), ("auto", "int_mm"), ("simulation", None)])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_with_nan_has_nan_for_an_answer_and_the_others_their_own(family, execution, backend):
    model = set_execution(packed(family), execution, backend=backend)
    x = one_spoilt(model)
    found = logits(model, x)
    others = [0, 1, 3]
    assert found[2].isnan().all()
    assert found[others].isfinite().all()
    whole = images(4, size=model.config.image_size)
    torch.testing.assert_close(found[others], logits(model, whole)[others], rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_so_it_is_in_other_types(dtype):
    model = packed("deit").to(dtype)
    assert logits(model, one_spoilt(model).to(dtype))[2].isnan().all()


def test_attention_without_native_kernels_keeps_nan(monkeypatch):
    for module in ("codes", "attention", "producers", "whole_layers"):
        monkeypatch.setattr(f"hf_vaq.inference.{module}.kernels", lambda: None)
    model = packed("deit")
    found = logits(model, one_spoilt(model))
    assert found[2].isnan().all() and found[:2].isfinite().all()


def test_hidden_states_of_the_backbone_are_nan_too():
    model = packed("vit")
    with torch.inference_mode():
        tokens = model.vit(one_spoilt(model)).last_hidden_state
    assert tokens[2].isnan().all() and tokens[0].isfinite().all()


@pytest.mark.parametrize("family", ["deit", "swin", "beit"])
def test_finite_weights_that_overflow_give_nan_as_in_the_simulation(family):
    model = packed(family)
    logits(model)
    layer = model.get_submodule(
        {"deit": "deit.layers.0", "swin": "swin.encoder.layers.0.blocks.0", "beit": "beit.layers.0"}[family]
    )
    with torch.no_grad():
        layer.mlp.fc2.bias.fill_(3e38)
        layer.attention.o_proj.bias.fill_(3e38)  # their sum is no float32
    assert logits(model).isnan().all()
    assert logits(set_execution(model, "simulation")).isnan().all()


def test_a_compiled_model_marks_them_without_looking_at_values():
    model = packed("deit")
    x = one_spoilt(model)
    logits(model, x)
    with torch.inference_mode():
        found = torch.compile(model, backend="eager", fullgraph=True)(pixel_values=x)
    assert found.logits[2].isnan().all() and found.logits[[0, 1, 3]].isfinite().all()


def test_marking_changes_the_answers_of_such_images_only():
    pixels = torch.zeros(3, 1, 2, 2)
    pixels[1, 0, 1, 0] = math.nan
    pixels[2, 0, 0, 0] = math.inf
    marked = mark_nan(torch.ones(3, 2, 5), pixels)
    assert marked[1].isnan().all() and torch.equal(marked[[0, 2]], torch.ones(2, 2, 5))


def test_the_training_form_answers_nan_as_well():
    model = trained("deit")
    assert logits(model, one_spoilt(model))[2].isnan().all()
