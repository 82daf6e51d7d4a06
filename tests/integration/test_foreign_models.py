"""What is no transformers model, or not a plain one, is refused in words that say what is accepted."""

import pytest
import torch
from helpers import build, images
from torch import nn
from transformers import ViTImageProcessor, pipeline

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.nn import weight_quantized_modules


class LoraLinear(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class PeftModel(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def merge_and_unload(self):
        return self.base_model


def quantized():
    model = hf_vaq.quantize(build(), QuantConfig())
    hf_vaq.calibrate(model, [images()])
    return model


def with_adapters(model):
    attention = model.vit.layers[0].attention
    attention.q_proj = LoraLinear(attention.q_proj)
    return model


FUNCTIONS = {
    "quantize": lambda model: hf_vaq.quantize(model, QuantConfig()),
    "pack": hf_vaq.pack,
    "calibrate": lambda model: hf_vaq.calibrate(model, [images()]),
    "set_fusion": lambda model: hf_vaq.set_fusion(model, False),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("given, words", [("some/path", r"got .*(str|'some/path')"), (None, "got NoneType")])
def test_what_is_no_module_is_refused_by_every_function(function, given, words):
    with pytest.raises(ValueError, match=rf"hf_vaq\.{function}\(model\): expected a .*model.*{words}"):
        FUNCTIONS[function](given)


@pytest.mark.parametrize("function", ["quantize", "pack"])
def test_a_module_that_transformers_did_not_make_is_refused(function):
    with pytest.raises(ValueError, match=r"expected a transformers model \(PreTrainedModel\), got Linear\."):
        FUNCTIONS[function](nn.Linear(3, 3))


@pytest.mark.parametrize("function", ["quantize", "pack", "calibrate"])
def test_of_a_pipeline_its_model_is_asked_for(function):
    given = pipeline("image-classification", model=build(), image_processor=ViTImageProcessor())
    with pytest.raises(ValueError, match="got ImageClassificationPipeline; the model inside may be its 'model'"):
        FUNCTIONS[function](given)


@pytest.mark.parametrize("wrap, name", [(nn.DataParallel, "module"), (torch.compile, "_orig_mod")])
def test_a_wrapped_model_is_packed_and_not_quantized(wrap, name):
    model = quantized()
    packed = hf_vaq.pack(wrap(model))
    assert type(packed) is type(model)
    for key, tensor in hf_vaq.pack(model).state_dict().items():
        assert torch.equal(tensor, packed.state_dict()[key])
    with pytest.raises(ValueError, match=f"the model inside may be its '{name}'"):
        hf_vaq.quantize(wrap(build()), QuantConfig())


@pytest.mark.parametrize("function", ["quantize", "pack"])
@pytest.mark.parametrize("wrap", [lambda model: model, PeftModel], ids=["the model inside", "PeftModel"])
def test_adapters_are_to_be_merged_first(function, wrap):
    model = with_adapters(build() if function == "quantize" else quantized())
    with pytest.raises(ValueError, match=rf"carries adapters: .*hf_vaq\.{function}\(model\.merge_and_unload\(\)\)"):
        FUNCTIONS[function](wrap(model))


def test_lora_of_peft_is_refused_and_packs_once_merged():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    lora = peft.get_peft_model(quantized(), config)
    with pytest.raises(ValueError, match="merge_and_unload"):
        hf_vaq.pack(lora)
    merged = lora.merge_and_unload()
    codes = {name: layer.weight_quantizer.codes(layer.weight) for name, layer in weight_quantized_modules(merged)}
    packed = hf_vaq.pack(merged)
    assert len(codes) == 14 and all(torch.equal(packed.get_submodule(name).codes(), codes[name]) for name in codes)


def test_a_config_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"config=\{'weight_bits': 4\}: expected a hf_vaq\.QuantConfig"):
        hf_vaq.quantize(build(), {"weight_bits": 4})


@pytest.mark.parametrize("fields", [None, {"activation_bits": None}], ids=["full precision", "weights only"])
def test_what_has_nothing_to_calibrate_is_told_why(fields):
    model = build() if fields is None else hf_vaq.quantize(build(), QuantConfig(**fields))
    with pytest.raises(ValueError, match=r"no activation quantizers .* in full precision, packed, or .*=None"):
        hf_vaq.calibrate(model, [images()])
