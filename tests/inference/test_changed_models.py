"""Packed models that change after they have run: what was prepared from their weights is prepared anew."""

import copy

import pytest
import torch
from helpers import build, images
from inference_helpers import logits, packed
from torch import nn

import hf_vaq
from hf_vaq.inference import compile_model, set_execution
from hf_vaq.inference.derived import Derived, Sources

FAMILIES = ["deit", "swin", "beit", "dinov2", "dinov2_swiglu"]


def trained_differently(family):
    model = hf_vaq.quantize(build(family, seed=7), hf_vaq.QuantConfig(weight_bits=4, activation_bits=4))
    hf_vaq.calibrate(model, [images(8, seed=8, size=model.config.image_size)])
    return hf_vaq.pack(model)


def numbers_of(model):
    """Names and tensors that are saved, but for packed codes."""
    return {name: x for name, x in model.state_dict(keep_vars=True).items() if x.is_floating_point()}


@pytest.mark.parametrize("family, backend", [*((family, "onednn") for family in FAMILIES), ("deit", "int_mm")])
def test_every_number_that_is_edited_in_place_counts_at_once(family, backend):
    model = set_execution(packed(family), "auto", backend=backend)
    logits(model)
    counted = 0
    for name, x in numbers_of(model).items():
        before = x.detach().clone()
        with torch.no_grad():
            x.mul_(1.5).add_(0.01)
        found, expected = logits(model), logits(copy.deepcopy(model))
        assert torch.equal(found, expected), name
        counted += 1
        with torch.no_grad():
            x.copy_(before)
    assert counted > 30


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_that_are_loaded_count_at_once(family, assign):
    model, other = packed(family), trained_differently(family)
    assert not torch.equal(logits(model), logits(other))
    model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(logits(model), logits(other))


@pytest.mark.parametrize("execution", ["auto", "simulation"])
def test_a_bias_is_edited_in_every_way_that_people_edit_it(execution):
    model = set_execution(packed("vit"), execution)
    start = logits(model)
    shift = torch.tensor([1.0, 2.0, 3.0])

    def in_inference_mode():
        with torch.inference_mode():
            model.classifier.bias.add_(shift)

    def in_place():
        with torch.no_grad():
            model.classifier.bias += shift

    def another_parameter():
        model.classifier.bias = nn.Parameter(model.classifier.bias + shift, requires_grad=False)

    def other_data():
        model.classifier.bias.data = model.classifier.bias.data + shift

    for count, edit in enumerate((in_inference_mode, in_place, another_parameter, other_data), start=1):
        edit()
        torch.testing.assert_close(logits(model) - start, (count * shift).expand_as(start))


def test_a_change_that_pytorch_does_not_count_is_seen_after_the_execution_is_chosen_again():
    model = packed("vit")
    start = logits(model)
    model.classifier.bias.data.add_(1)
    torch.testing.assert_close(logits(set_execution(model)) - start, torch.ones_like(start))


def test_a_model_that_was_made_in_inference_mode_sees_its_changes():
    with torch.inference_mode():
        model = packed("vit")
        start = logits(model)
        model.classifier.bias.add_(1)
        torch.testing.assert_close(logits(model) - start, torch.ones_like(start))


def test_what_is_unchanged_is_prepared_once():
    model = packed("swin")
    logits(model)
    prepared = {module: module._sources for module in model.modules() if isinstance(module, Derived)}
    assert any(sources is not None for sources in prepared.values())
    logits(model)
    assert all(module._sources is sources for module, sources in prepared.items())


def test_sources_are_the_tensors_under_their_names():
    layer = nn.Linear(2, 2)
    sources = Sources([layer])
    assert not sources.changed()
    layer.bias, kept = nn.Parameter(layer.bias.detach().clone()), layer.bias
    assert sources.changed()
    layer.bias = kept
    assert not sources.changed()
    with torch.no_grad():
        layer.weight[0, 0] = 1
    assert sources.changed()


def test_a_compiled_model_refuses_to_go_on_with_weights_that_changed():
    compiled = compile_model(packed("vit"))
    with torch.no_grad():
        compiled.model.classifier.bias.add_(1)
    with pytest.raises(RuntimeError, match=r"changed after compile_model.*compile it anew"):
        compiled(pixel_values=images())
