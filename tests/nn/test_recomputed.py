"""What fused layers compute again instead of keeping it: to the same bits, once, and only if it was not written to."""

import copy

import pytest
import torch
from helpers import build, images
from torch.nn import functional

from hf_vaq import QuantConfig, calibrate, pack, quantize
from hf_vaq.integration.windows import remember_windows, window_order
from hf_vaq.nn import coded, recomputed
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.nn.recomputed import LayerNorm
from hf_vaq.numerics.compiled import uncompiled

SIZES = {"vit": {}, "swin": {"drop_path_rate": 0.0, "window_size": 4}}


@pytest.fixture(autouse=True)
def _plain_kernels():
    with uncompiled():
        yield


def fused(family, **config):
    model = quantize(build(family, **SIZES[family] | config), QuantConfig(weight_bits=4, activation_bits=4))
    calibrate(model, [images()])
    set_fusion(model, True)
    return model.train()


def bytes_kept(model):
    """What a forward pass keeps for the backward pass besides the parameters: every storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(pixel_values=images()).logits.sum()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_no_result_of_a_layer_norm_that_layers_read_is_kept(family):
    model, sizes = fused(family), []
    norms = [
        m for n, m in model.named_modules() if n.endswith(("layernorm_before", "layernorm_after", "downsample.norm"))
    ]
    handles = [
        norm.register_forward_hook(lambda module, args, output: sizes.append(4 * output.numel())) for norm in norms
    ]
    model(pixel_values=images())
    for handle in handles:
        handle.remove()
    without = bytes_kept(model)
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if hook in (recomputed.remember_norm, remember_windows)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    assert len(sizes) == len(norms) >= 4
    assert bytes_kept(model) - without == sum(sizes)


def test_three_projections_of_one_input_compute_it_again_once(monkeypatch):
    model = fused("vit")
    loss = model(pixel_values=images()).logits.sum()
    calls = []
    original = functional.layer_norm
    monkeypatch.setattr(functional, "layer_norm", lambda *args: calls.append(1) or original(*args))
    loss.backward()
    assert len(calls) == 2 * len(model.vit.layers)


@pytest.mark.parametrize("shifted", [False, True])
def test_windows_computed_again_have_the_bits_of_those_the_attention_got(shifted):
    model = build("swin", **SIZES["swin"])
    layer = model.swin.encoder.layers[0].blocks[int(shifted)]
    found = []
    layer.attention.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    height, width = 8, 12
    x = torch.randn(2, height * width, layer.layernorm_before.normalized_shape[0])
    layer(x, (height, width))
    norm = layer.layernorm_before
    operation = LayerNorm(norm.eps, window_order(height, width, layer.window_size, layer.shift_size)[0])
    assert (layer.shift_size > 0) == shifted
    assert torch.equal(operation(x, norm.weight, norm.bias), found[0])


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_packed_copy_holds_nothing_for_a_backward_pass(family):
    packed = pack(fused(family).eval())
    packed(pixel_values=images())  # gradients are recorded: not everybody says no_grad
    copy.deepcopy(packed)  # would refuse an activation that a module still holds
    hooks = {hook for module in packed.modules() for hook in module._forward_hooks.values()}
    assert not hooks & {recomputed.remember_gelu, recomputed.remember_norm}


def test_a_result_that_was_written_to_is_kept_itself():
    norm = torch.nn.LayerNorm(8)
    norm.register_forward_hook(recomputed.remember_norm)
    x = torch.randn(3, 8, requires_grad=True)
    output = norm(x)
    assert recomputed.source_of(output).argument is x
    output.mul_(2)
    assert recomputed.source_of(output) is None


def test_a_result_in_another_type_than_its_argument_is_kept_itself():
    norm = torch.nn.LayerNorm(8)
    norm.register_forward_hook(recomputed.remember_norm)
    output = norm(torch.randn(3, 8, requires_grad=True).bfloat16().float().requires_grad_())
    assert recomputed.source_of(output) is not None
    mixed = norm(torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True))
    assert mixed.dtype is torch.bfloat16 and recomputed.source_of(mixed) is None


def test_a_compiled_model_with_gradients_from_codes_keeps_no_quantized_copies(monkeypatch):
    monkeypatch.setattr(coded, "HAS_TILES", True)  # without them: test_fusion.py
    model = fused("vit", num_hidden_layers=1)
    eager = bytes_kept(model)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    whole.parameters = model.parameters
    # The compiler also keeps some results of LayerNorm and of attention; with quantized copies it would be 2.5 times.
    assert bytes_kept(whole) <= 1.3 * eager
    torch._dynamo.reset()
