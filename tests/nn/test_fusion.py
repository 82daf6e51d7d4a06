"""Models with fused quantizers against the same models without: results, what is kept, and what turns fusion off."""

import pytest
import torch
from helpers import build, images, shift_first_block

from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.nn import coded, fused_attention, fusion
from hf_vaq.nn.attention import quantized_attention
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.numerics.compiled import uncompiled

STILL = {"swin": {"drop_path_rate": 0.0}, "beit": {"drop_path_rate": 0.0}}


@pytest.fixture(autouse=True)
def _plain_kernels():
    with uncompiled():
        yield


def quantized(family="vit", granularity="tensor", weight_scale="learned", shifted=False, **config):
    model = build(family, **STILL.get(family, {}) | config)
    if shifted:
        shift_first_block(model)
    settings = {"weight_granularity": granularity, "activation_granularity": granularity}
    settings |= {"weight_scale": weight_scale}
    if granularity == "channel":
        settings["activation_granularity"] = "head"
    quantize(model, QuantConfig(weight_bits=4, activation_bits=4, **settings))
    calibrate(model, [images()])
    return model.train()


def results(model, fused, autocast=False, **inputs):
    """Logits and gradients of one batch."""
    set_fusion(model, fused)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(pixel_values=images(), **inputs)
    output.logits.float().square().sum().backward()
    return output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(plain, fused, tolerance=1e-3):
    assert torch.equal(plain[0], fused[0])
    assert plain[1].keys() == fused[1].keys()
    for name, gradient in plain[1].items():
        difference = (fused[1][name] - gradient).norm()
        assert difference <= tolerance * gradient.norm() + 1e-5, name
        assert fused[1][name].dtype is gradient.dtype


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel"])
@pytest.mark.parametrize("family", ["vit", "deit_two_heads", "swin", "dinov2", "dinov2_swiglu", "beit"])
def test_logits_are_equal_to_the_last_bit_and_gradients_to_rounding(family, granularity):
    model = quantized(family, granularity)
    assert_same(results(model, False), results(model, True))


def test_weight_scales_that_are_statistics_stay_without_gradient():
    model = quantized(weight_scale="statistics")
    assert_same(results(model, False), results(model, True))


def test_under_autocast_the_same_operands_enter_the_products():
    model = quantized("swin")
    plain, fused = results(model, False, autocast=True), results(model, True, autocast=True)
    # Gradients are rounded to bfloat16 in between, at other places.
    assert_same(plain, fused, tolerance=0.1)


def test_gradient_checkpointing_changes_nothing():
    model = quantized()
    without = results(model, True)
    model.gradient_checkpointing_enable()
    assert_same(without, results(model, True), tolerance=0)


def test_nothing_of_the_size_of_the_attention_probabilities_is_kept():
    model = quantized()
    kept = []

    def note(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        set_fusion(model, True)
        attentions = model(pixel_values=images(), output_attentions=True).attentions
    assert kept and not {attention.shape for attention in attentions} & set(kept)


def test_a_loss_on_the_attention_probabilities_reaches_queries_and_keys():
    model = quantized()
    gradients = []
    for fused in (False, True):
        set_fusion(model, fused)
        model.zero_grad()
        output = model(pixel_values=images(), output_attentions=True)
        (output.logits.sum() + output.attentions[0].square().sum()).backward()
        gradients.append(model.vit.layers[0].attention.q_proj.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_a_shared_input_that_is_used_elsewhere_too_gets_both_gradients():
    model = quantized()
    attention = model.vit.layers[0].attention
    found = []
    for fused in (False, True):
        set_fusion(model, fused)
        x = torch.linspace(-1, 1, 4 * 17 * 32).view(4, 17, 32).requires_grad_()
        (attention(x)[0].sum() + x.pow(3).sum()).backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def bytes_kept(model, forward=None, count=8):
    """What a forward pass keeps for the backward pass besides the parameters: every storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    pixels, kept = images(count), {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (model if forward is None else forward)(pixel_values=pixels).logits.sum()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_fused_model_keeps_less_than_the_full_precision_model(family):
    sizes = {"vit": {"patch_size": 4, "intermediate_size": 128}, "swin": {"window_size": 4}}[family]
    full = bytes_kept(build(family, **STILL.get(family, {}) | sizes).train())
    model = quantized(family, **sizes)
    set_fusion(model, False)
    plain = bytes_kept(model)
    set_fusion(model, True)
    assert bytes_kept(model) <= full < plain


def test_dropped_probabilities_take_the_general_path():
    model = quantized(attention_probs_dropout_prob=0.5)
    torch.manual_seed(0)
    plain = results(model, False)
    torch.manual_seed(0)
    assert_same(plain, results(model, True))


def test_a_hook_on_a_quantizer_is_called():
    model = quantized()
    set_fusion(model, True)
    layer, attention = model.vit.layers[0].mlp.fc1, model.vit.layers[0].attention
    called = []
    for quantizer in (layer.weight_quantizer, layer.input_quantizer, attention.attention_quantizers["query"]):
        quantizer.register_forward_hook(lambda module, args, output: called.append(module))
    model(pixel_values=images())
    assert len(called) == 3


def test_small_tensors_are_not_compiled_for_where_no_gradient_is_wanted(monkeypatch):
    model = quantized()
    set_fusion(model, True)
    used = []
    original = fused_attention._Attention.apply
    monkeypatch.setattr(fused_attention._Attention, "apply", lambda *args: used.append(1) or original(*args))
    with torch.no_grad():
        without = model(pixel_values=images()).logits
    assert not used
    monkeypatch.setattr(fusion, "INFERENCE_FROM", 1)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images()).logits, without)
    assert len(used) == 2


def test_the_size_of_the_model_decides_unless_somebody_else_does(monkeypatch):
    model = quantized()
    assert set_fusion(model) is False
    monkeypatch.setattr(fusion, "AUTOMATIC_FROM", 1000)
    assert set_fusion(model) is True
    assert model.vit.layers[0].mlp.fc1.fused and model.vit.layers[0].attention.input_quantizer.fused
    assert quantize(build(), QuantConfig()).vit.layers[0].mlp.fc1.fused
    assert set_fusion(model, False) is False and not model.vit.layers[0].mlp.fc1.fused
    with pytest.raises(ValueError, match=r"enabled=1: expected True, False, or None"):
        set_fusion(model, 1)


@pytest.mark.parametrize(
    ("family", "config"), [("vit", {"num_hidden_layers": 1}), ("swin", {"depths": [1, 1], "shifted": True})]
)
def test_a_training_step_is_one_graph_that_keeps_no_quantized_copies(family, config, monkeypatch):
    monkeypatch.setattr(coded, "HAS_TILES", False)  # with them: test_coded.py
    model = quantized(family, **config)
    plain = results(model, False)
    set_fusion(model, True)  # the compiler fuses by itself, so this makes no difference
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    logits = whole(pixel_values=images()).logits
    logits.square().sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert_same(plain, (logits.detach(), found))
    if family == "vit":
        # The compiler also keeps some results of LayerNorm and of attention; with quantized copies it would be 2.5
        # times.
        assert bytes_kept(model, whole, 4) <= 1.3 * bytes_kept(model, count=4)
    torch._dynamo.reset()


def test_attention_without_all_four_quantizers_takes_the_general_path():
    module = torch.nn.Module().train()
    module.attention_quantizers = torch.nn.ModuleDict()
    query = torch.randn(2, 3, 5, 4, requires_grad=True)
    output, _ = quantized_attention(module, query, query, query, None)
    assert output.shape == (2, 5, 3, 4)


def test_a_traced_step_multiplies_the_same_operands_under_autocast():
    model = quantized(num_hidden_layers=1)
    found = []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(pixel_values=images()).logits
        logits.float().square().sum().backward()
        found.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert_same(*found, tolerance=0.1)
    torch._dynamo.reset()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("family", ["swin", "vit"])
def test_layers_checkpointed_by_transformers_have_the_same_gradients(family, use_reentrant):
    model = quantized(family, shifted=family == "swin")
    plain = results(model, False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert_same(plain, results(model, True))


def test_windows_that_a_hook_replaced_give_the_gradients_of_what_was_read():
    outcomes = []
    for fused in (False, True):
        model = quantized("swin")
        layer = model.swin.encoder.layers[0].blocks[0]
        layer.register_forward_pre_hook(lambda layer, args: (args[0] * 1.5, *args[1:]))
        layer.attention.register_forward_pre_hook(lambda layer, args: (args[0] * 0.7, *args[1:]), prepend=True)
        outcomes.append(results(model, fused))
    assert_same(*outcomes)
