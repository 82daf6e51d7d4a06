"""What is noted on a tensor stands until somebody writes to it."""

import pytest
import torch
from helpers import build, images

from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.nn.notes import note, noted


def gradients(model):
    model(pixel_values=images()).logits.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_note_stands_until_the_tensor_or_its_source_is_written_to():
    for changed in (0, 1):
        tensors = torch.ones(2), torch.ones(2)
        note(tensors[0], "_note", "value", tensors[1])
        assert noted(tensors[0], "_note") == "value"
        tensors[changed].mul_(2)
        assert noted(tensors[0], "_note") is None
    assert noted(torch.ones(2), "_note") is None


@pytest.mark.parametrize(("changed", "seen_by"), [("q_proj", ("q_proj", "k_proj", "v_proj")), ("v_proj", ("v_proj",))])
def test_a_shared_input_that_a_hook_changes_in_place_gives_the_gradients_of_what_was_read(changed, seen_by):
    outcomes = []
    for in_place in (False, True):
        model = quantize(build("vit"), QuantConfig(weight_bits=4, activation_bits=4)).train()
        calibrate(model, [images()])
        set_fusion(model, in_place)
        attention = model.vit.layers[0].attention
        if in_place:
            getattr(attention, changed).register_forward_pre_hook(lambda layer, args: (args[0].mul_(1.5), None)[1])
        else:
            for name in seen_by:
                getattr(attention, name).register_forward_pre_hook(lambda layer, args: (args[0] * 1.5,))
        outcomes.append(gradients(model))
    for name, expected in outcomes[0].items():
        assert (outcomes[1][name] - expected).norm() <= 1e-3 * expected.norm() + 1e-5, name
