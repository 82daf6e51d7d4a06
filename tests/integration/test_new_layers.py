"""A training form that is loaded with a new head, another image size, or scales that its file lacks."""

import logging

import pytest
import torch
from helpers import build, images
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.nn import UncalibratedError, activation_quantizers, weight_quantized_modules


@pytest.fixture
def saved(tmp_path):
    """Save a calibrated training form whose head is much larger than a new one."""

    def save(family="vit", **fields):
        model = build(family)
        head = getattr(model, "classifier", None)
        with torch.no_grad():
            head.weight.mul_(50)
        hf_vaq.quantize(model, QuantConfig(**fields))
        hf_vaq.calibrate(model, [images(8, seed=1)])
        model.save_pretrained(tmp_path)
        return model.eval()

    return save


def load(folder, **arguments):
    return AutoModelForImageClassification.from_pretrained(folder, ignore_mismatched_sizes=True, **arguments)


def change(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
def assert_scales_fit(layer):
    """The scales are at least as good as those that just clip nothing."""
    weight, quantizer = layer.weight.detach(), layer.weight_quantizer
    groups = weight.flatten(1) if quantizer.groups.count > 1 else weight.flatten()[None]
    step = groups.abs().amax(1, keepdim=True) / (2 ** (quantizer.bits - 1) - 1)
    error_unclipped = ((groups / step).round() * step - groups).square().mean()
    assert (quantizer(weight) - weight).square().mean() <= error_unclipped


def activation_scales(model):
    return {name: quantizer.log_scale.detach() for name, quantizer in activation_quantizers(model)}


@pytest.mark.parametrize("family", ["vit", "deit", "swin", "beit", "dinov2"])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "head"])
def test_a_new_head_has_scales_of_its_own_weights_and_everything_else_keeps_its_own(
    family, granularity, saved, tmp_path
):
    old = saved(family, weight_granularity=granularity)
    new = load(tmp_path, num_labels=7)
    assert new.classifier.weight.abs().max() < old.classifier.weight.abs().max() / 5
    assert_scales_fit(new.classifier)
    assert hf_vaq.is_calibrated(new)
    before, after = activation_scales(old), activation_scales(new)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        encoded = [model.base_model(images()).last_hidden_state for model in (old, new)]
    assert torch.equal(*encoded)


def test_a_new_head_of_a_full_precision_checkpoint_has_scales_of_its_own_weights(tmp_path):
    model = build()
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    model.save_pretrained(tmp_path)
    new = load(tmp_path, num_labels=7, quantization_config=QuantConfig(weight_granularity="channel"))
    assert_scales_fit(new.classifier)
    assert not hf_vaq.is_calibrated(new)


@pytest.mark.parametrize("change_of_config", [{"image_size": 64}, {"num_channels": 1}, {"num_hidden_layers": 3}])
def test_a_new_part_of_the_encoder_makes_activations_wait_for_calibration(
    change_of_config, saved, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    saved(weight_granularity="channel")
    new = load(tmp_path, **change_of_config)
    assert "is not from the checkpoint" in caplog.text
    pixels = torch.randn(2, new.config.num_channels, new.config.image_size, new.config.image_size)
    with pytest.raises(UncalibratedError):
        new(pixels)
    assert not any(quantizer.is_calibrated() for _, quantizer in activation_quantizers(new))
    for _, layer in weight_quantized_modules(new):
        assert_scales_fit(layer)
    hf_vaq.calibrate(new, [pixels])
    with torch.no_grad():
        assert torch.isfinite(new(pixels).logits).all()


def test_a_scale_that_the_file_lacks_is_set_from_what_is_there(saved, tmp_path):
    old = saved(weight_granularity="channel")
    name = "vit.layers.0.mlp.fc1"

    def leave_out(tensors):
        del tensors[f"{name}.weight_quantizer.log_scale"]
        del tensors["vit.layers.0.mlp.fc2.input_quantizer.offset"]
        del tensors["vit.layers.1.mlp.fc2.input_quantizer.calibrated"]
        del tensors[f"{name}.input_quantizer.log_scale"]

    change(tmp_path, leave_out)
    new = load(tmp_path)
    scales = [model.get_submodule(name).weight_quantizer.log_scale for model in (old, new)]
    assert torch.equal(*scales)  # untrained, they are those of the weights
    waiting = {name for name, quantizer in activation_quantizers(new) if not quantizer.is_calibrated()}
    assert waiting == {f"{name}.input_quantizer", *(f"vit.layers.{i}.mlp.fc2.input_quantizer" for i in (0, 1))}


def test_statistics_of_weights_need_nothing_but_a_new_head(saved, tmp_path):
    saved(weight_scale="statistics")
    new = load(tmp_path, num_labels=7)
    scale = new.classifier.weight_quantizer.scale(new.classifier.weight)
    torch.testing.assert_close(scale, 2 * new.classifier.weight.abs().mean()[None] / 128)


def test_a_new_head_of_a_packed_checkpoint_is_refused_with_the_way_out(saved, tmp_path):
    hf_vaq.pack(saved()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'classifier\.bias' has shape \(3,\), expected \(7,\).*the training form"):
        load(tmp_path, num_labels=7)


def test_a_head_put_in_by_hand_is_not_packed(saved):
    model = saved()
    model.classifier = torch.nn.Linear(32, 7)
    with pytest.raises(ValueError, match=r"'classifier' came into this ViT.* after it was quantized.*num_labels"):
        hf_vaq.pack(model)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["classifier.weight_quantizer.log_scale", "classifier.input_quantizer.log_scale"])
def test_scales_of_a_training_form_that_are_no_numbers_are_refused_by_name(name, bad, saved, tmp_path):
    saved()
    change(tmp_path, lambda tensors: tensors[name].fill_(bad))
    with pytest.raises(ValueError, match=f"'{name}' holds 1 NaN or infinite"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name, dtype, message",
    [
        ("classifier.weight_quantizer.log_scale", torch.int8, "has type I8, expected F64 or F32 or F16 or BF16"),
        ("vit.layernorm.weight", torch.float8_e4m3fn, "has type F8_E4M3"),
        ("classifier.input_quantizer.calibrated", torch.float32, "has type F32, expected BOOL"),
    ],
)
def test_types_that_a_training_form_cannot_hold_are_refused_by_name(name, dtype, message, saved, tmp_path):
    saved()
    change(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor '{name}' {message}"):
        load(tmp_path)
