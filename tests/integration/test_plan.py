import pytest
import torch
from helpers import FAMILIES, build
from transformers import (
    AutoModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.integration.plan import plan_quantization
from hf_vaq.numerics.groups import ScaleGroups

# Layers of a block, by family: name of the first block, and of what is quantized inside it.
BLOCKS = {
    "vit": (
        "vit.layers.0",
        ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"],
    ),
}
BLOCKS["deit"] = BLOCKS["deit_two_heads"] = ("deit.layers.0", BLOCKS["vit"][1])
BLOCKS["beit"] = ("beit.layers.0", BLOCKS["vit"][1])
BLOCKS["swin"] = ("swin.encoder.layers.0.blocks.0", BLOCKS["vit"][1])
BLOCKS["dinov2"] = ("dinov2.encoder.layer.0", BLOCKS["vit"][1])
BLOCKS["dinov2_swiglu"] = (
    "dinov2.encoder.layer.0",
    [*BLOCKS["vit"][1][:4], "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
)
EDGES = {
    "vit": ["classifier"],
    "deit": ["classifier"],
    "deit_two_heads": ["cls_classifier", "distillation_classifier"],
    "swin": ["classifier", "swin.encoder.layers.0.downsample.reduction"],
    "dinov2": ["classifier"],
    "dinov2_swiglu": ["classifier"],
    "beit": ["classifier"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_and_the_patch_convolution_are_planned_and_nothing_else(family):
    model = build(family)
    plan = plan_quantization(model, QuantConfig(weight_bits=2, activation_bits=3))
    layers = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert set(plan.weights) == layers
    block, names = BLOCKS[family]
    for name in names:
        assert plan.weights[f"{block}.{name}"].bits == 2
    for name in [*EDGES[family], next(n for n in layers if n.endswith("patch_embeddings.projection"))]:
        assert plan.weights[name].bits == 8 and plan.inputs[name].bits == 8
    # The shared input of q, k and v is quantized once, on the attention module.
    assert plan.shared_inputs[f"{block}.attention"].bits == 3
    assert not any(name.endswith(("q_proj", "k_proj", "v_proj")) for name in plan.inputs)
    attention = plan.attention[f"{block}.attention"]
    assert {name: spec.signed for name, spec in attention.items()} == {
        "query": True,
        "key": True,
        "value": True,
        "probabilities": False,
    }
    assert plan.inputs[f"{block}.attention.o_proj"].bits == 3
    if f"{block}.mlp.fc2" in plan.inputs:
        after_gelu = plan.inputs[f"{block}.mlp.fc2"]
        assert not after_gelu.signed and after_gelu.with_offset
    else:
        assert plan.shared_inputs[f"{block}.mlp"].bits == 3
        assert plan.inputs[f"{block}.mlp.down_proj"].signed


def test_head_granularity_cuts_rows_of_q_k_v_columns_of_o_and_activations_by_head():
    plan = plan_quantization(build("swin"), QuantConfig(weight_granularity="head", activation_granularity="head"))
    for stage, heads in ((0, 2), (1, 4)):
        attention = f"swin.encoder.layers.{stage}.blocks.0.attention"
        for role in ("q_proj", "k_proj", "v_proj"):
            assert plan.weights[f"{attention}.{role}"].groups == ScaleGroups(heads, 0)
        assert plan.weights[f"{attention}.o_proj"].groups == ScaleGroups(heads, 1)
        assert plan.inputs[f"{attention}.o_proj"].groups == ScaleGroups(heads, -1)
        assert all(spec.groups == ScaleGroups(heads, 1) for spec in plan.attention[attention].values())
        assert plan.weights[f"swin.encoder.layers.{stage}.blocks.0.mlp.fc1"].groups == ScaleGroups()
    assert plan.weights["classifier"].groups == ScaleGroups()


def test_channel_granularity_gives_every_output_channel_a_scale():
    plan = plan_quantization(build(), QuantConfig(weight_granularity="channel"))
    assert plan.weights["vit.layers.0.mlp.fc1"].groups == ScaleGroups(64, 0)
    assert plan.weights["vit.embeddings.patch_embeddings.projection"].groups == ScaleGroups(32, 0)


def test_heads_that_do_not_divide_a_projection_are_refused_by_name():
    model = build()
    model.vit.layers[1].attention.num_attention_heads = 3
    with pytest.raises(ValueError, match=r"vit\.layers\.1\.attention\.q_proj\.weight .*3 groups do not divide"):
        plan_quantization(model, QuantConfig(weight_granularity="head"))


@pytest.mark.parametrize(("side", "gone"), [("weight_bits", "weights"), ("activation_bits", "inputs")])
def test_none_leaves_that_side_in_float_everywhere(side, gone):
    plan = plan_quantization(build("swin"), QuantConfig(**{side: None}))
    assert not getattr(plan, gone)
    assert plan.weights or (plan.inputs and plan.shared_inputs and plan.attention)
    if side == "activation_bits":
        assert not plan.shared_inputs and not plan.attention


def test_edge_bits_none_leaves_the_first_and_last_layer_in_float():
    plan = plan_quantization(build("swin"), QuantConfig(edge_bits=None))
    assert not {"classifier", "swin.embeddings.patch_embeddings.projection"} & {*plan.weights, *plan.inputs}
    assert "swin.encoder.layers.0.downsample.reduction" not in plan.weights


def test_overrides_set_bits_and_granularity_by_pattern_and_the_later_wins():
    overrides = {
        "*.layers.1.*": {"weight_bits": 6, "activation_bits": 5},
        "*.layers.1.mlp.fc?": {"weight_bits": None},
        "*.q_proj": {"weight_granularity": "channel"},
        "*.layers.0.attention.attention_quantizers.probabilities": {"activation_bits": 8},
        "classifier": {"weight_bits": 3},
    }
    plan = plan_quantization(build(), QuantConfig(weight_bits=2, activation_bits=2, module_overrides=overrides))
    assert plan.weights["vit.layers.0.mlp.fc1"].bits == 2
    assert plan.weights["vit.layers.1.attention.k_proj"].bits == 6
    assert "vit.layers.1.mlp.fc1" not in plan.weights
    assert plan.inputs["vit.layers.1.mlp.fc1"].bits == 5
    assert plan.shared_inputs["vit.layers.1.attention"].bits == 5
    assert plan.weights["vit.layers.0.attention.q_proj"].groups == ScaleGroups(32, 0)
    assert plan.weights["vit.layers.0.attention.k_proj"].groups == ScaleGroups()
    assert {n: s.bits for n, s in plan.attention["vit.layers.0.attention"].items()} == {
        "query": 2,
        "key": 2,
        "value": 2,
        "probabilities": 8,
    }
    assert plan.weights["classifier"].bits == 3 and plan.inputs["classifier"].bits == 8


def test_an_override_that_matches_nothing_is_refused_with_examples():
    with pytest.raises(ValueError, match=r"'\*\.query_proj'.*named like vit\.embeddings"):
        plan_quantization(build(), QuantConfig(module_overrides={"*.query_proj": {"weight_bits": 3}}))


@pytest.mark.parametrize("pattern", ["fc3", "classifer", r"vit\.layers\.7"])
def test_a_module_to_leave_alone_that_does_not_exist_is_refused_with_examples(pattern):
    config = QuantConfig(modules_to_not_convert=["fc2", pattern])
    with pytest.raises(
        ValueError, match=r"modules_to_not_convert: no module of ViTFor.* matches .*named like vit\.emb"
    ):
        plan_quantization(build(), config)
    assert "vit.layers.0.mlp.fc2" not in plan_quantization(build(), config, all_patterns=False).weights


def test_a_pattern_of_a_head_does_not_keep_the_bare_model_from_loading(tmp_path):
    fields = {"modules_to_not_convert": ["classifier"], "module_overrides": {"*.fc1": {"weight_bits": 3}}}
    hf_vaq.quantize(build(), QuantConfig(**fields)).save_pretrained(tmp_path)
    bare = AutoModel.from_pretrained(tmp_path)
    assert bare.layers[0].mlp.fc1.weight_quantizer.bits == 3


def test_an_override_of_one_reader_of_a_shared_input_is_refused_with_the_module_to_name():
    with pytest.raises(ValueError, match=r"shares with q_proj, k_proj, v_proj.*override 'vit\.layers\.0\.attention'"):
        plan_quantization(build(), QuantConfig(module_overrides={"*.q_proj": {"activation_bits": 8}}))


def test_modules_not_to_convert_are_left_alone_and_the_others_keep_inputs_of_their_own():
    plan = plan_quantization(build(), QuantConfig(modules_to_not_convert=["classifier", "q_proj"]))
    assert "classifier" not in plan.weights and "vit.layers.0.attention.q_proj" not in plan.weights
    assert "vit.layers.0.attention" not in plan.shared_inputs
    assert "vit.layers.0.attention.k_proj" in plan.inputs


def test_a_configuration_that_quantizes_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing in ViTForImageClassification would be quantized"):
        plan_quantization(build(), QuantConfig(weight_bits=None, activation_bits=None))


def test_an_unknown_architecture_is_refused_with_the_supported_ones_and_the_way_out():
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3))
    with pytest.raises(ValueError, match=r"'resnet'.*beit, deit, dinov2, swin, vit.*quantize_attention=False"):
        plan_quantization(resnet, QuantConfig())


def test_without_attention_the_linears_of_an_unknown_architecture_are_quantized_each_on_its_own():
    config = ViTMSNConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    model = ViTMSNForImageClassification(config)
    plan = plan_quantization(model, QuantConfig(weight_bits=2, activation_bits=2, quantize_attention=False))
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linears <= set(plan.weights) == set(plan.inputs)
    assert not plan.attention and not plan.shared_inputs
    assert plan.weights["classifier"].bits == 8
