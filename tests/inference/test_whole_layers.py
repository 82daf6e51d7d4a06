"""A transformer layer as one kernel computes what its modules compute, and leaves to them what it cannot do."""

import copy
import pickle

import pytest
import torch
from helpers import build, images
from inference_helpers import logits, packed, trained
from transformers import (
    AutoModelForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import hf_vaq
from hf_vaq.inference import set_execution, whole_layers
from hf_vaq.inference.native import loading, ops
from hf_vaq.inference.whole_layers import run_modules, runs_whole

pytestmark = pytest.mark.skipif(loading.kernels() is None, reason="needs AVX-512 VNNI and a C++ compiler")

FAMILIES = ("vit", "deit", "deit_two_heads", "swin", "dinov2", "beit")
SCHEMES = {
    "W4A4": {},
    "W2A2": {"weight_bits": 2, "activation_bits": 2},
    "heads": {"weight_bits": 3, "activation_bits": 5, "weight_granularity": "head", "activation_granularity": "head"},
    "channels": {"weight_bits": 8, "weight_granularity": "channel"},
}


def layers_of(model):
    return [module for module in model.modules() if runs_whole(module)]


def by_modules(model):
    """The same model without kernels for whole layers."""
    model = copy.deepcopy(model)
    for layer in layers_of(model):
        run_modules(layer)
    return model


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the hidden states that the kernel got."""
    seen, kernel = [], ops.layer
    monkeypatch.setattr(ops, "layer", lambda x, *rest: seen.append(tuple(x.shape)) or kernel(x, *rest))
    return seen


@torch.inference_mode()
def check_layers(model, pixel_values, limit=1e-3):
    """Each layer gives the numbers of its modules; a code on the border of two may become the other one."""
    apart, inputs = by_modules(model), {}
    for name, module in apart.named_modules():
        if name in {n for n, m in model.named_modules() if runs_whole(m)}:
            module.register_forward_hook(
                lambda layer, args, kwargs, output, name=name: inputs.update({name: (args, kwargs, output)}),
                with_kwargs=True,
            )
    apart(pixel_values=pixel_values)
    assert inputs
    for name, (args, kwargs, output) in inputs.items():
        found = model.get_submodule(name)(*args, **kwargs)
        found, wanted = (x[0] if isinstance(x, tuple) else x for x in (found, output))
        changed = (wanted - args[0]).abs().mean()
        assert found.shape == wanted.shape and changed > 0
        assert ((found - wanted).abs() > 1e-3 * changed).float().mean() <= limit, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layer_computes_what_its_modules_compute(family, scheme, calls):
    model = packed(family, **SCHEMES[scheme])
    check_layers(model, images(3, seed=2))
    assert len(calls) == len(layers_of(model)) > 0


@pytest.fixture(scope="module")
def wide_model():
    """Wide enough that threads share columns (of one image), with tokens enough that they share rows."""
    config = ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=768, num_hidden_layers=1, image_size=32, patch_size=4
    )
    torch.manual_seed(0)
    return packed(model=ViTForImageClassification(config))


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_however_threads_share_the_work(wide_model, threads, count):
    pixels = images(count)
    check_layers(wide_model, pixels)
    found = logits(wide_model, pixels)
    torch.set_num_threads(1)
    assert torch.equal(found, logits(wide_model, pixels))


@pytest.mark.parametrize("image_size, window", [(32, 4), (40, 4), (28, 3), (20, 5)])
def test_windows_that_do_not_fill_the_image_are_padded_as_swin_pads_them(image_size, window, calls):
    config = SwinConfig(
        image_size=image_size, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=window
    )
    torch.manual_seed(0)
    model = SwinForImageClassification(config)
    for name, parameter in model.named_parameters():
        if "relative_position_bias" in name:
            torch.nn.init.normal_(parameter)
    check_layers(packed(model=model), images(2, seed=1, size=image_size))
    assert calls


def test_a_model_answers_for_images_of_several_sizes(calls):
    model = packed("beit")
    assert torch.allclose(logits(model), logits(by_modules(model)), atol=1e-2)
    larger = images(2, size=48)
    with torch.inference_mode():
        found = model(pixel_values=larger, interpolate_pos_encoding=True).logits
        wanted = by_modules(model)(pixel_values=larger, interpolate_pos_encoding=True).logits
    assert torch.allclose(found, wanted, atol=1e-2)
    assert {tokens for _, tokens, _ in calls} == {17, 37}


def test_probabilities_and_hooks_are_left_to_the_modules(calls):
    model = packed("swin")
    with torch.inference_mode():
        output = model(pixel_values=images(), output_attentions=True, output_hidden_states=True)
        wanted = by_modules(model)(pixel_values=images(), output_attentions=True, output_hidden_states=True)
    assert not calls and output.attentions[0] is not None
    assert all(map(torch.equal, output.hidden_states, wanted.hidden_states))
    model, seen = packed("vit"), []
    layer = layers_of(model)[0]
    handle = layer.mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    logits(model)
    assert seen and len(calls) == len(layers_of(model)) - 1
    handle.remove()
    calls.clear()
    logits(model)
    assert len(calls) == len(layers_of(model))


def test_hidden_states_are_those_of_the_kernel():
    model = packed("deit")
    with torch.inference_mode():
        states = model(pixel_values=images(), output_hidden_states=True).hidden_states
        again = by_modules(model)(pixel_values=images(), output_hidden_states=True).hidden_states
    assert len(states) == len(again) == 3
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(states, again, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: set_execution(model, "simulation"),
        lambda model: set_execution(model, "integer", backend="int_mm"),
    ],
    ids=["training", "simulation", "int_mm"],
)
def test_what_the_kernel_cannot_do_the_modules_do(change, calls):
    model = packed("vit")
    change(model)
    with torch.inference_mode():
        assert model(pixel_values=images()).logits.isfinite().all()
    assert not calls


def test_another_type_is_left_to_the_modules(tmp_path, calls):
    packed("vit").save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert logits(model).dtype is torch.bfloat16 and not calls


@pytest.mark.parametrize(
    "family, fields",
    [("vit", {"activation_bits": 8}), ("vit", {"quantize_attention": False}), ("dinov2_swiglu", {})],
    ids=str,
)
def test_layers_that_the_kernel_cannot_take_run_module_by_module(family, fields, calls):
    model = packed(family, **fields)
    assert logits(model).isfinite().all()
    assert not calls


def test_without_kernels_layers_run_module_by_module(monkeypatch, calls):
    monkeypatch.setattr(whole_layers, "kernels", lambda: None)
    assert logits(packed("vit")).isfinite().all() and not calls


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_copies_and_pickles_prepare_their_own_kernels(family, calls):
    model = packed(family)
    expected = logits(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        layers = layers_of(copied)
        assert len(layers) == len(layers_of(model)) and all(layer.layer_engine.kernel is None for layer in layers)
        del calls[:]
        assert torch.equal(logits(copied), expected) and len(calls) == len(layers)
    assert [type(layer).__name__ for layer in layers] == [type(layer).__name__ for layer in layers_of(model)]


def test_an_operator_outlives_no_model(monkeypatch):
    model = packed("vit")
    logits(model)
    engine = layers_of(model)[0].layer_engine
    number, windows = engine.kernel.number, next(iter(engine.windows.values()))
    with pytest.raises(ValueError, match="x has shape"):
        ops.layer(torch.zeros(1, 5, 7), number, windows.number)
    engine.reset()
    with pytest.raises(RuntimeError, match="is gone"):
        ops.layer(torch.zeros(1, 17, 32), number, windows.number)


def test_saving_after_use_saves_what_it_saved_before(tmp_path):
    model = hf_vaq.pack(trained(model=build("vit")))
    model.save_pretrained(tmp_path / "before")
    logits(model)
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after
