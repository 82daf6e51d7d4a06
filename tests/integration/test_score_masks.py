"""Position biases and masks of windows in a model that is compiled as a whole."""

import pytest
import torch
from functorch.compile import make_boxed_func
from helpers import build, images
from torch._dynamo.backends.common import aot_autograd

from hf_vaq import QuantConfig, calibrate, pack, quantize
from hf_vaq.integration.injection import remove_training_hooks
from hf_vaq.integration.score_masks import write_bias, write_mask

CONFIGS = {
    "swin": {"drop_path_rate": 0.0, "window_size": 4, "depths": [2], "num_heads": [2]},
    "beit": {"drop_path_rate": 0.0, "use_relative_position_bias": True, "num_hidden_layers": 1},
}


def trained(family):
    model = quantize(build(family, **CONFIGS[family]), QuantConfig(weight_bits=4, activation_bits=4))
    calibrate(model, [images()])
    return model.train()


def gradients(model, call):
    model.zero_grad()
    call(pixel_values=images()).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if "bias_table" in name}


@pytest.fixture
def compiled():
    """A function that compiles a model, and the list in which it counts views of memory that forward passes take."""
    views = []

    def backend(graph, inputs):
        views.append(sum(node.target is torch.ops.aten.as_strided.default for node in graph.graph.nodes))
        return make_boxed_func(graph)

    backends = aot_autograd(fw_compiler=backend, bw_compiler=lambda graph, inputs: make_boxed_func(graph))
    yield lambda model: torch.compile(model, backend=backends), views
    torch._dynamo.reset()


@pytest.mark.parametrize("family", CONFIGS)
def test_they_are_written_once_a_layer_with_the_gradients_of_eager_mode(family, compiled):
    compile_, views = compiled
    model = trained(family)
    expected = gradients(model, model)
    found = gradients(model, compile_(model))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    written = sum(views)
    torch._dynamo.reset()
    views.clear()
    remove_training_hooks(model)
    # Its views are those of the forward pass alone, which is compiled in half the time.
    compile_(model.requires_grad_(False))(pixel_values=images())
    shifted = sum(getattr(module, "shift_size", 0) > 0 for module in model.modules())
    assert (shifted > 0) == (family == "swin")
    assert written - sum(views) == len(expected) + shifted > 0


@pytest.mark.parametrize("family", CONFIGS)
def test_a_packed_copy_has_no_hooks_for_it(family):
    modules = list(pack(trained(family).eval()).modules())
    hooks = {
        hook
        for module in modules
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    }
    assert not hooks & {write_bias, write_mask}
