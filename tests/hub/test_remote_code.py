"""The file that unpacks models without this package computes what hf_vaq computes, for every family and scheme."""

import json

import numpy as np
import pytest
import torch
from helpers import FAMILIES, build, images
from hub_client_helpers import Client, ClientError, environment
from safetensors.torch import load_file, save_file

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.hub import complete_model_folder
from hf_vaq.inference import set_execution

HEADS = {"weight_bits": 3, "activation_bits": 5, "weight_granularity": "head", "activation_granularity": "head"}
SCHEMES = [
    {"weight_bits": 2, "activation_bits": 2},
    {"weight_bits": 4, "activation_bits": None, "weight_granularity": "channel"},
    {"weight_bits": None, "activation_bits": 4},
    {"weight_bits": 8, "activation_bits": 8, "weight_scale": "statistics", "edge_bits": None},
    {"weight_bits": 7, "activation_bits": 6, "quantize_attention": False},
    {"module_overrides": {"*.fc1": {"weight_bits": 5, "activation_bits": 7}, "*.q_proj": {"weight_bits": None}}},
    {"weight_bits": 3, "activation_bits": 3, "modules_to_not_convert": ["classifier"]},
]
CASES = [(family, HEADS) for family in FAMILIES] + [("vit", scheme) for scheme in SCHEMES]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Client:
    """A process in which hf_vaq cannot be imported, without a Hub."""
    variables = environment("http://127.0.0.1:9", tmp_path_factory.mktemp("home"), HF_HUB_OFFLINE="1")
    client = Client(variables, "import sys; sys.modules['hf_vaq'] = None; import transformers")
    yield client
    client.close()


def packed(family: str, scheme: dict, folder) -> torch.Tensor:
    """Write a packed model with its file; its logits on `images()`."""
    model = hf_vaq.quantize(build(family), QuantConfig(**scheme))
    if scheme.get("activation_bits", 4) is not None:
        hf_vaq.calibrate(model, [images(8, seed=1)])
    model = hf_vaq.pack(model)
    model.save_pretrained(folder)
    complete_model_folder(folder)
    set_execution(model, "simulation")
    with torch.no_grad():
        return model(pixel_values=images()).logits


LOAD = """
import torch
from transformers import AutoModelForImageClassification
model, report = AutoModelForImageClassification.from_pretrained(
    folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
with torch.no_grad():
    value = model.eval()(pixel_values=torch.tensor(pixels)).logits.tolist()
"""


@pytest.mark.parametrize(
    "family, scheme", CASES, ids=[f"{family}-{number}" for number, (family, _) in enumerate(CASES)]
)
def test_logits_without_the_package_are_the_same_to_the_last_bit(family, scheme, foreign, tmp_path):
    logits = packed(family, scheme, tmp_path)
    found = foreign.run(LOAD, folder=str(tmp_path), pixels=images().tolist())
    np.testing.assert_array_equal(np.array(found, dtype=np.float32), logits.numpy())


def test_saved_again_it_is_the_same_file_and_loads_again(foreign, tmp_path):
    packed("vit", HEADS, tmp_path / "first")
    code = LOAD + "model.save_pretrained(copy)"
    foreign.run(code, folder=str(tmp_path / "first"), copy=str(tmp_path / "second"), pixels=images().tolist())
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    loaded = type(build()).from_pretrained(tmp_path / "second")
    assert loaded.config.quantization_config.weight_granularity == "head"


def test_a_format_that_the_file_does_not_know_and_the_training_form_are_refused(foreign, tmp_path):
    packed("vit", HEADS, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in ({"format_version": 2}, "checkpoint format 2"), ({"packed": False}, "only hf_vaq reads it"):
        fields = config | {"quantization_config": config["quantization_config"] | change}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ClientError, match=words):
            foreign.run(LOAD, folder=str(tmp_path), pixels=[])


NAME = "vit.layers.0.mlp.fc1"


@pytest.mark.parametrize(
    "change, words",
    [
        ({f"{NAME}.weight_scale": 0.0}, f"the scale of '{NAME}' is not positive"),
        ({f"{NAME}.weight_scale": -1.0}, f"the scale of '{NAME}' is not positive"),
        ({f"{NAME}.input_quantizer.scale": 1e-45}, f"the scale of '{NAME}.input_quantizer' is not positive"),
        ({f"{NAME}.weight_scale": 3e38}, f"the scale of '{NAME}' is not positive and finite"),
        ({"vit.layernorm.weight": float("nan")}, "'vit.layernorm.weight' holds NaN"),
        ({"vit.layernorm.weight": None}, "lacks 'vit.layernorm.weight'"),
        ({f"{NAME}.weight_codes": None}, f"lacks '{NAME}.weight_codes'"),
        ({f"{NAME}.weight_codes": torch.int8}, f"'{NAME}.weight_codes' has shape .* type I8, expected .*U8"),
        ({f"{NAME}.weight_scale": torch.float16}, f"'{NAME}.weight_scale' has .* type F16, expected .*F32 or F64"),
        ({"vit.layernorm.weight": torch.float8_e4m3fn}, "'vit.layernorm.weight' has .* type F8_E4M3"),
        (
            {"quantization_config": {"edge_bits": None}},
            "'classifier.input_quantizer.scale', for which its config.json",
        ),
        ({"quantization_config": {"weight_bits": 3}}, r"shape \[512\] and type U8, expected \[384\]"),
    ],
)
def test_what_is_not_whole_or_not_sane_is_refused_by_name(change, words, foreign, tmp_path):
    packed("vit", {"weight_bits": 4, "activation_bits": 4}, tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    for name, value in change.items():
        if name == "quantization_config":
            config[name] |= value
        elif value is None:
            del tensors[name]
        elif isinstance(value, float):
            tensors[name].fill_(value)
        else:
            tensors[name] = tensors[name].to(value)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClientError, match=words):
        foreign.run(LOAD, folder=str(tmp_path), pixels=[])


def test_half_precision_files_of_other_tensors_and_bare_models_load(foreign, tmp_path):
    packed("vit", {"weight_bits": 4, "activation_bits": 4}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["vit.layernorm.weight"] = tensors["vit.layernorm.weight"].half()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    code = LOAD.replace("AutoModelForImageClassification", "AutoModel")
    code = code.replace("not any(report.values())", "not report['mismatched_keys']").replace(".logits", "[0]")
    for each in (LOAD, code):
        assert np.isfinite(foreign.run(each, folder=str(tmp_path), pixels=images(1).tolist())).all()
