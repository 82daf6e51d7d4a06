"""from_pretrained and save_pretrained: full precision to training form, and both forms back."""

import json
import logging

import pytest
import torch
from helpers import FAMILIES, build, images
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTImageProcessor, ViTModel, pipeline

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.inference import set_execution
from hf_vaq.nn import PackedConv2d, PackedLinear, QuantLinear, UncalibratedError, activation_quantizers


def quantized(family="vit", calibrated=True, **fields):
    model = hf_vaq.quantize(build(family), QuantConfig(**fields))
    if calibrated:
        hf_vaq.calibrate(model, [images(8, seed=1)])
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(pixel_values=images()).logits


def load(model_class, folder, **arguments):
    return model_class.from_pretrained(folder, **arguments)


CASES = [
    {"weight_bits": 2, "activation_bits": 2},
    {"weight_bits": 3, "activation_bits": 5, "weight_granularity": "head", "activation_granularity": "head"},
    {"weight_bits": 4, "activation_bits": None, "weight_granularity": "channel"},
    {"weight_bits": None, "activation_bits": 4},
    {"weight_bits": 8, "activation_bits": 8, "weight_scale": "statistics", "edge_bits": None},
    {"weight_bits": 4, "activation_bits": 4, "quantize_attention": False},
    {"module_overrides": {"*.fc1": {"weight_bits": 3, "activation_bits": 7}, "*.q_proj": {"weight_bits": None}}},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_with_a_config_equals_quantizing_in_memory(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    config = QuantConfig(weight_bits=3, activation_bits=3)
    loaded = load(FAMILIES[family][0], tmp_path, quantization_config=config)
    assert not hf_vaq.is_calibrated(loaded)
    hf_vaq.calibrate(loaded, [images(8, seed=1)])
    assert torch.equal(logits(loaded), logits(quantized(family, weight_bits=3, activation_bits=3)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", CASES[:2])
def test_both_forms_of_every_family_reload_with_the_same_logits_to_the_last_bit(family, fields, tmp_path):
    check_round_trips(quantized(family, **fields), tmp_path)


@pytest.mark.parametrize("fields", CASES[2:])
def test_both_forms_of_every_scheme_reload_with_the_same_logits_to_the_last_bit(fields, tmp_path):
    model = quantized(calibrated=fields.get("activation_bits", 4) is not None, **fields)
    check_round_trips(model, tmp_path)


def check_round_trips(model, tmp_path):
    expected = logits(model)
    assert torch.isfinite(expected).all()
    packed = hf_vaq.pack(model)
    assert torch.equal(simulated_logits(packed), expected)
    for form, name in ((model, "training"), (packed, "packed")):
        form.save_pretrained(tmp_path / name)
        again = load(type(model), tmp_path / name)
        assert torch.equal(simulated_logits(again), expected)
        again.save_pretrained(tmp_path / "again")
        assert torch.equal(simulated_logits(load(type(model), tmp_path / "again")), expected)
    assert torch.equal(logits(model), expected)  # packing left it alone


def simulated_logits(model):
    """Logits by the arithmetic of the training form, which a packed model has to be told to use."""
    return logits(set_execution(model, "simulation") if model.config.quantization_config.packed else model)


def test_the_quantizers_are_at_work(tmp_path):
    plain, low, high = (
        logits(build()),
        logits(quantized(weight_bits=2)),
        logits(quantized(weight_bits=8, activation_bits=8)),
    )
    assert (low - plain).norm() > 5 * (high - plain).norm() > 0


def test_the_shared_input_of_q_k_and_v_is_quantized_once(monkeypatch):
    model = quantized()
    attention = model.vit.layers[0].attention
    calls, seen = [], []
    attention.input_quantizer.register_forward_hook(lambda module, args, output: calls.append(output))
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(model)
    assert len(calls) == 1 and len(seen) == 3
    assert all(tensor is calls[0] for tensor in seen)
    assert len(calls[0].unique()) <= 16


def test_every_parameter_of_a_quantized_model_gets_a_gradient():
    for family in FAMILIES:
        model = quantized(family).train()
        model(pixel_values=images()).logits.pow(2).sum().backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without in ([], ["dinov2.embeddings.mask_token"])


def test_a_packed_model_holds_codes_and_no_latent_weight(tmp_path):
    model = quantized(weight_bits=3, activation_bits=3)
    packed = hf_vaq.pack(model)
    packed.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layers = [name for name, m in packed.named_modules() if isinstance(m, PackedLinear | PackedConv2d)]
    assert len(layers) == 2 * 6 + 2
    assert not any(f"{name}.weight" in tensors for name in layers)
    assert not any(isinstance(m, QuantLinear) for m in packed.modules())
    name = "vit.layers.0.mlp.fc1"
    assert tensors[f"{name}.weight_codes"].dtype is torch.uint8
    assert tensors[f"{name}.weight_codes"].numel() == 64 * 32 * 3 // 8
    latent = model.get_submodule(name)
    assert torch.equal(packed.get_submodule(name).codes(), latent.weight_quantizer.codes(latent.weight))


def test_size_on_disk_is_that_of_codes_and_float_parts(tmp_path):
    bits = {"weight_bits": 3, "activation_bits": 3}
    model = build(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_hidden_layers=4)
    hf_vaq.quantize(model, QuantConfig(**bits))
    hf_vaq.calibrate(model, [images()])
    linear_weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, QuantLinear))
    edge = model.classifier.weight.numel()
    conv = model.vit.embeddings.patch_embeddings.projection.weight.numel()
    codes = ((linear_weights - edge) * 3 + (edge + conv) * 8) / 8
    floats = 4 * (sum(p.numel() for p in model.parameters()) - linear_weights - conv)
    hf_vaq.pack(model).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 1.05 * (codes + floats)


def test_loading_a_packed_model_never_builds_the_float_weights(tmp_path, monkeypatch):
    hf_vaq.pack(quantized()).save_pretrained(tmp_path)
    materialised = []
    original = torch.nn.Linear.__init__
    monkeypatch.setattr(
        torch.nn.Linear,
        "__init__",
        lambda self, *a, **k: (original(self, *a, **k), materialised.append(self.weight.device.type))[0],
    )
    model = load(AutoModelForImageClassification, tmp_path)
    assert set(materialised) == {"meta"}  # the skeleton, whose layers are replaced before anything is read
    assert not any(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert sum(t.numel() * t.element_size() for t in model.state_dict().values()) < 0.4 * sum(
        4 * p.numel() for p in build().parameters()
    )


def test_pipeline_runs_a_packed_folder(tmp_path):
    hf_vaq.pack(quantized()).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    from PIL import Image

    answers = pipeline("image-classification", model=str(tmp_path))(Image.new("RGB", (40, 30), "red"))
    assert {answer["label"] for answer in answers} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


def test_bare_model_loads_from_a_packed_classifier(tmp_path):
    packed = hf_vaq.pack(quantized())
    packed.save_pretrained(tmp_path)
    bare = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    with torch.no_grad():
        wanted = packed.vit(pixel_values=images()).last_hidden_state
        assert torch.equal(bare(pixel_values=images()).last_hidden_state, wanted)


def test_bfloat16_loading_keeps_scales_in_float32(tmp_path):
    hf_vaq.pack(quantized()).save_pretrained(tmp_path)
    model = load(AutoModelForImageClassification, tmp_path, dtype=torch.bfloat16)
    assert model.vit.layers[0].mlp.fc1.weight_scale.dtype is torch.float32
    assert model.vit.layers[0].mlp.fc1.bias.dtype is torch.bfloat16
    assert torch.isfinite(logits(model).float()).all()


def test_swin_with_a_training_form_in_bfloat16_keeps_scales_in_float32(tmp_path):
    build("swin").save_pretrained(tmp_path)
    model = load(AutoModelForImageClassification, tmp_path, dtype=torch.bfloat16, quantization_config=QuantConfig())
    assert model.classifier.weight_quantizer.log_scale.dtype is torch.float32
    assert model.classifier.weight.dtype is torch.bfloat16


def test_an_uncalibrated_model_is_neither_evaluated_nor_packed_nor_after_reloading(tmp_path):
    model = quantized(calibrated=False)
    with pytest.raises(UncalibratedError, match=r"hf_vaq\.calibrate"):
        logits(model)
    with pytest.raises(UncalibratedError, match="input_quantizer'"):
        hf_vaq.pack(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(UncalibratedError):
        logits(load(type(model), tmp_path))


def test_the_first_training_batch_calibrates(tmp_path):
    model = quantized(calibrated=False).train()
    model(pixel_values=images())
    assert hf_vaq.is_calibrated(model)
    assert torch.isfinite(logits(model.eval())).all()


def test_models_that_cannot_be_quantized_or_packed_are_refused():
    with pytest.raises(ValueError, match="quantized already"):
        hf_vaq.quantize(quantized(), QuantConfig())
    with pytest.raises(ValueError, match="packed=True: expected False"):
        hf_vaq.quantize(build(), QuantConfig(packed=True))
    with pytest.raises(ValueError, match="not quantized by hf_vaq"):
        hf_vaq.pack(build())
    with pytest.raises(ValueError, match="packed already"):
        hf_vaq.pack(hf_vaq.pack(quantized()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    model = build()
    with torch.no_grad():
        model.vit.layers[1].mlp.fc2.weight[3, 5] = bad
    model.save_pretrained(tmp_path)
    message = r"'vit\.layers\.1\.mlp\.fc2\.weight' holds 1 NaN or infinite"
    with pytest.raises(ValueError, match=message):
        load(type(model), tmp_path, quantization_config=QuantConfig())
    with pytest.raises(ValueError, match=message):
        hf_vaq.quantize(model, QuantConfig())
    assert not any(isinstance(m, QuantLinear) for m in model.modules())  # left unchanged


def packed_folder(tmp_path):
    hf_vaq.pack(quantized()).save_pretrained(tmp_path)
    return tmp_path / "model.safetensors"


def test_a_packed_checkpoint_that_was_cut_short_is_named(tmp_path):
    file = packed_folder(tmp_path)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short or damaged"):
        load(AutoModelForImageClassification, tmp_path)


def test_a_packed_checkpoint_with_a_tensor_of_a_wrong_shape_is_refused_by_name(tmp_path):
    file = packed_folder(tmp_path)
    tensors = load_file(file)
    tensors["vit.layers.0.mlp.fc1.weight_codes"] = tensors["vit.layers.0.mlp.fc1.weight_codes"][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"'vit\.layers\.0\.mlp\.fc1\.weight_codes' has shape \(1023,\), expected \(1024,\)"
    ):
        load(AutoModelForImageClassification, tmp_path)


def test_a_packed_checkpoint_that_lacks_a_tensor_is_refused_by_name(tmp_path):
    file = packed_folder(tmp_path)
    tensors = load_file(file)
    del tensors["vit.layers.0.mlp.fc1.input_quantizer.scale"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the tensor 'vit\.layers\.0\.mlp\.fc1\.input_quantizer\.scale'"):
        load(AutoModelForImageClassification, tmp_path)


def test_a_packed_checkpoint_of_a_newer_version_is_refused(tmp_path):
    packed_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= {"format_version": 2, "hf_vaq_version": "7.0.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"hf_vaq 7\.0\.0.*format 2.*upgrade"):
        load(AutoModelForImageClassification, tmp_path)


def test_a_full_precision_checkpoint_is_not_loaded_as_packed(tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="packed=True describes a checkpoint that holds packed codes"):
        load(AutoModelForImageClassification, tmp_path, quantization_config=QuantConfig(packed=True))


def test_loading_a_full_precision_checkpoint_warns_of_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    build().save_pretrained(tmp_path)
    config = QuantConfig()
    model = AutoModelForImageClassification.from_pretrained(tmp_path, quantization_config=config)
    assert len(list(activation_quantizers(model))) == len(list(activation_quantizers(quantized()))) > 0
    assert "MISSING" not in caplog.text and "newly initialized" not in caplog.text
    # What really is missing is warned of.
    build().vit.save_pretrained(tmp_path / "headless")
    AutoModelForImageClassification.from_pretrained(tmp_path / "headless", quantization_config=config)
    assert "MISSING" in caplog.text and "newly initialized" in caplog.text


def test_a_model_keeps_its_attention_implementation_when_only_weights_are_quantized():
    assert quantized(calibrated=False, activation_bits=None).config._attn_implementation != "vaq"
    assert quantized().config._attn_implementation == "vaq"
