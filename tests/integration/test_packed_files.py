"""A packed checkpoint is what its config.json describes, tensor by tensor, or it is refused."""

import json

import pytest
import torch
from helpers import FAMILIES, build, images
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import hf_vaq
from hf_vaq import QuantConfig

CODES = "vit.layers.0.mlp.fc1.weight_codes"
WEIGHT_SCALE = "vit.layers.0.mlp.fc1.weight_scale"
INPUT_SCALE = "vit.layers.0.mlp.fc2.input_quantizer.scale"
OFFSET = "vit.layers.0.mlp.fc2.input_quantizer.offset"
PROBABILITIES = "vit.layers.1.attention.attention_quantizers.probabilities.scale"
NORM = "vit.layernorm.weight"


@pytest.fixture(scope="module")
def packed():
    model = hf_vaq.quantize(build(), QuantConfig())
    hf_vaq.calibrate(model, [images(8, seed=1)])
    return hf_vaq.pack(model)


@pytest.fixture
def folder(packed, tmp_path):
    packed.save_pretrained(tmp_path)
    return tmp_path


def load(folder, **arguments):
    return AutoModelForImageClassification.from_pretrained(folder, **arguments)


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def set_to(name, value):
    return lambda tensors: tensors[name].fill_(value)


@pytest.mark.parametrize("name", [WEIGHT_SCALE, INPUT_SCALE, PROBABILITIES, "classifier.weight_scale"])
@pytest.mark.parametrize("value", [0.0, -0.0, -1e-3, 1e-45, 1e-38, 1e38, float("inf"), float("nan")])
def test_scales_that_are_not_positive_or_overflow_are_refused_by_name(name, value, folder):
    edit(folder / "model.safetensors", set_to(name, value))
    with pytest.raises(ValueError, match=rf"'{name}' holds"):
        load(folder)


def test_one_bad_scale_of_many_is_found(tmp_path):
    model = hf_vaq.quantize(build(), QuantConfig(weight_granularity="channel", activation_bits=None))
    hf_vaq.pack(model).save_pretrained(tmp_path)
    edit(tmp_path / "model.safetensors", lambda tensors: tensors[WEIGHT_SCALE][5:6].fill_(-2.5))
    with pytest.raises(ValueError, match=rf"'{WEIGHT_SCALE}' holds -2\.5: expected scales from 1\.18e-38 to"):
        load(tmp_path)


def test_an_offset_with_which_codes_overflow_is_refused(folder):
    def change(tensors):
        tensors[OFFSET].fill_(3e38)
        tensors[INPUT_SCALE].fill_(2e37)  # 15 of them are 3e38

    edit(folder / "model.safetensors", change)
    with pytest.raises(ValueError, match=f"'{OFFSET}' is too large"):
        load(folder)


def test_what_overflows_in_half_precision_only_is_refused_there_only(folder):
    edit(folder / "model.safetensors", set_to("classifier.weight_scale", 1000))  # 8 bits: 128,000 > 65,504
    load(folder)
    with pytest.raises(
        ValueError, match=r"'classifier\.weight_scale' holds 1000.*to 512, .*128 stay finite in float16"
    ):
        load(folder, dtype=torch.float16)


@pytest.mark.parametrize("name", [NORM, "vit.embeddings.position_embeddings", "vit.layers.1.mlp.fc2.bias", OFFSET])
def test_numbers_that_are_not_finite_are_refused_by_name(name, folder):
    edit(folder / "model.safetensors", lambda tensors: tensors[name].view(-1)[0].fill_(float("nan")))
    with pytest.raises(ValueError, match=f"'{name}' holds 1 NaN or infinite values"):
        load(folder)


@pytest.mark.parametrize(
    "name", [NORM, "vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "classifier.bias", CODES, OFFSET]
)
def test_a_tensor_that_is_missing_is_named(name, folder):
    edit(folder / "model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=rf"model\.safetensors lacks the tensor '{name}'"):
        load(folder)


def test_a_tensor_that_the_model_has_no_place_for_is_named(folder):
    edit(folder / "model.safetensors", lambda tensors: tensors.update({"vit.layers.2.extra": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"model\.safetensors holds the tensor 'vit\.layers\.2\.extra'.*no place"):
        load(folder)


def test_one_tensor_under_two_names_is_refused(folder):
    edit(folder / "model.safetensors", lambda tensors: tensors.update({"layernorm.weight": torch.ones(32)}))
    with pytest.raises(ValueError, match=r"twice, as '(vit\.)?layernorm\.weight' and '(vit\.)?layernorm\.weight'"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"modules_to_not_convert": ["fc2"]},
        {"modules_to_not_convert": ["classifier"]},
        {"edge_bits": None},
        {"weight_bits": None},
        {"activation_bits": None},
        {"weight_bits": 3},
        {"quantize_attention": False},
        {"weight_granularity": "channel"},
        {"activation_granularity": "head"},
        {"module_overrides": {"*.q_proj": {"weight_bits": None}}},
    ],
    ids=str,
)
def test_an_edited_scheme_does_not_fit_the_file(change, folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"packed checkpoint .*model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    "name, accepted, refused",
    [
        (CODES, ["uint8"], ["int8", "int64", "bool", "float16", "float8_e4m3fn"]),
        (WEIGHT_SCALE, ["float32", "float64"], ["float16", "bfloat16", "int8", "bool", "float8_e4m3fn"]),
        (INPUT_SCALE, ["float64"], ["float16", "int64", "float8_e5m2"]),
        (NORM, ["float16", "bfloat16", "float32", "float64"], ["int32", "bool", "float8_e4m3fn"]),
    ],
)
def test_each_kind_of_tensor_is_accepted_in_types_that_hold_it(name, accepted, refused, packed, folder):
    file, expected = folder / "model.safetensors", packed.state_dict()[name]
    tensors = load_file(file)
    for dtype in accepted:
        save_file(tensors | {name: expected.to(getattr(torch, dtype))}, file, metadata={"format": "pt"})
        assert torch.equal(load(folder).state_dict()[name], expected)  # a new LayerNorm holds ones
    for dtype in refused:
        save_file(tensors | {name: expected.to(getattr(torch, dtype))}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"tensor '{name}' has type"):
            load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_sound_checkpoint_loads_in_every_type_and_keeps_codes_and_scales(dtype, packed, folder):
    loaded, saved = load(folder, dtype=dtype).state_dict(), packed.state_dict()
    for name in (CODES, WEIGHT_SCALE, INPUT_SCALE):
        assert torch.equal(loaded[name], saved[name])
    assert loaded[NORM].dtype is dtype


@pytest.mark.parametrize("form", ["training form", "full precision"])
def test_codes_are_not_taken_for_a_model_of_another_form(form, folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if form == "training form":
        config["quantization_config"]["packed"] = False
    else:
        del config["quantization_config"]
    file.write_text(json.dumps(config))
    arguments = {} if form == "training form" else {"quantization_config": QuantConfig()}
    with pytest.raises(ValueError, match=r"model\.safetensors holds packed codes \('.*weight_codes'\)"):
        load(folder, **arguments)


def test_a_training_form_is_not_taken_for_packed(tmp_path):
    model = hf_vaq.quantize(build(), QuantConfig(activation_bits=None))
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["packed"] = True
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors lacks the tensor '.*weight_codes'"):
        load(tmp_path)


def test_shards_are_checked_together(packed, tmp_path):
    packed.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    load(tmp_path)
    last = tmp_path / max(index.values())
    sound = last.read_bytes()
    name = max(name for name, file in index.items() if file == last.name and name.endswith("weight_scale"))
    for change, message in (
        (lambda tensors: tensors.pop(name), rf"lacks the tensor '{name}'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), rf"{last.name} holds the tensor 'extra'"),
        (lambda tensors: tensors.update({name: tensors[name].half()}), rf"{last.name}: tensor '{name}' has type F16"),
        (set_to(name, 0), rf"'{name}' holds 0"),
    ):
        edit(last, change)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
        last.write_bytes(sound)


def test_pickled_files_are_not_read(packed, folder):
    torch.save(packed.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected safetensors"):
        load(folder)


def test_a_state_dict_is_checked_as_a_file_is(packed, folder):
    state = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    arguments = {"config": AutoConfig.from_pretrained(folder), "state_dict": state}
    again = ViTForImageClassification.from_pretrained(None, **arguments)
    assert torch.equal(again.state_dict()[CODES], state[CODES])
    del state[NORM]
    with pytest.raises(ValueError, match=f"packed state_dict lacks the tensor '{NORM}'"):
        ViTForImageClassification.from_pretrained(None, **arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_model_leaves_the_head_out_and_a_classifier_needs_one(family, tmp_path):
    model = hf_vaq.quantize(build(family), QuantConfig(module_overrides={"*classifier": {"weight_bits": 5}}))
    hf_vaq.calibrate(model, [images()])
    hf_vaq.pack(model).save_pretrained(tmp_path)
    bare = AutoModel.from_pretrained(tmp_path)
    name = next(name for name in bare.state_dict() if name.endswith("weight_codes"))
    assert torch.equal(bare.state_dict()[name], load(tmp_path).base_model.state_dict()[name])
    bare.save_pretrained(tmp_path)  # where it has a pooler, that is new
    AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the tensor '.*(classifier|pooler)"):
        load(tmp_path)


def test_a_new_pooler_stays_in_floating_point_and_is_found_again(folder, tmp_path):
    bare = ViTModel.from_pretrained(folder)
    bare.save_pretrained(tmp_path / "bare")
    again = ViTModel.from_pretrained(tmp_path / "bare")
    assert torch.equal(again.pooler.dense.weight, bare.pooler.dense.weight)
    assert not torch.equal(ViTModel.from_pretrained(folder).pooler.dense.weight, bare.pooler.dense.weight)


@pytest.mark.parametrize("name", ["vit.layers.0.mlp.fc1.weight", "vit.layernorm.bias"])
def test_a_model_that_holds_nan_is_not_packed(name):
    model = hf_vaq.quantize(build(), QuantConfig(activation_bits=None))
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = float("nan")
    with pytest.raises(ValueError, match=f"'{name}' holds 1 NaN or infinite"):
        hf_vaq.pack(model)


def test_a_model_whose_scales_could_not_be_loaded_again_is_not_packed():
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**build().config.to_diff_dict()))
    with torch.no_grad():
        model.classifier.weight.fill_(1e-42)
    hf_vaq.quantize(model, QuantConfig(activation_bits=None, weight_scale="statistics"))
    with pytest.raises(ValueError, match=r"'classifier\.weight_scale' holds"):
        hf_vaq.pack(model)
