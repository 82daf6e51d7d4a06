"""Statistics of spread against textbook formulas, and the variation analysis of small models."""

import math

import numpy
import pytest
import torch
from analysis_helpers import Labelled
from helpers import FAMILIES, build, images
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.analysis import Moments, analyze_variation
from hf_vaq.analysis.variation import CNN, INPUT, OUTPUT, TRANSFORMER, WEIGHT, architecture_of


def resnet():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic")
    return ResNetForImageClassification(config).eval()


@pytest.mark.parametrize("channel_dim", [0, 1, -1])
def test_moments_equal_numpy_on_everything_taken_in(channel_dim):
    parts = [torch.randn(4, 6, 4) + 0.3, torch.randn(4, 6, 4) * 3]
    moments = Moments(heads=2)
    for part in parts:
        moments.update(part, channel_dim)
    spread = moments.spread()
    x = numpy.stack([part.movedim(channel_dim, 0).reshape(part.shape[channel_dim], -1).numpy() for part in parts], 1)
    x = x.reshape(len(x), -1).astype(numpy.float64)
    channels = numpy.abs(x).mean(1)
    heads = channels.reshape(2, -1).mean(1)
    deviation = x - x.mean()
    assert spread.elements == x.size
    assert spread.mean_abs == pytest.approx(numpy.abs(x).mean())
    assert spread.std == pytest.approx(x.std())
    assert spread.sdam == pytest.approx(channels.std())
    assert spread.relative_sdam == pytest.approx(channels.std() / numpy.abs(x).mean())
    assert spread.kurtosis == pytest.approx((deviation**4).mean() / x.var() ** 2, rel=1e-5)
    assert spread.max_over_std == pytest.approx(numpy.abs(x).max() / x.std())
    assert spread.head_spread == pytest.approx(heads.std() / heads.mean())


def test_known_distributions_have_their_kurtosis():
    moments = Moments()
    moments.update(torch.randn(200, 5000, generator=torch.Generator().manual_seed(0)), 0)
    assert moments.spread().kurtosis == pytest.approx(3.0, abs=0.03)
    two_values = Moments()
    two_values.update(torch.tensor([[-1.0, 1.0]]), 0)
    assert two_values.spread().kurtosis == pytest.approx(1.0)


def test_constant_tensors_have_no_kurtosis_and_missing_values_are_errors():
    constant = Moments()
    constant.update(torch.full((3, 4), 0.1), 0)
    assert (constant.spread().kurtosis, constant.spread().max_over_std, constant.spread().sdam) == (0, 0, 0)
    with pytest.raises(ValueError, match="no values"):
        Moments().spread()
    broken = Moments()
    broken.update(torch.tensor([[1.0, math.nan]]), 0)
    with pytest.raises(ValueError, match="not finite"):
        broken.spread()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_is_measured(family):
    model = build(family)
    result = analyze_variation({"model": model})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert [row.module for row in result.rows] == list(layers)
    for row in result.rows:
        weight = layers[row.module].weight.flatten(1)
        assert (row.architecture, row.tensor) == (TRANSFORMER, WEIGHT)
        assert row.spread.sdam == pytest.approx(weight.abs().mean(1).std(correction=0).item(), rel=1e-4)
        assert (row.spread.head_spread is not None) == (
            row.module.split(".")[-1] in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
    assert {row.depth for row in result.rows} >= {0.0, 1.0}


def test_heads_of_an_output_projection_are_its_columns():
    model = build("vit")
    row = next(row for row in analyze_variation({"m": model}).rows if row.module.endswith("layers.0.attention.o_proj"))
    heads = model.get_submodule(row.module).weight.view(32, 2, 16).abs().mean((0, 2))
    assert row.spread.head_spread == pytest.approx((heads.std(correction=0) / heads.mean()).item(), rel=1e-4)


def test_activations_are_those_of_the_layers(tmp_path):
    model, seen = build("vit"), {}
    name = "vit.layers.1.attention.q_proj"
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda module, args, output: seen.update(input=args[0], output=output))
    with torch.no_grad():
        model(pixel_values=images(5))
    handle.remove()
    result = analyze_variation({"vit": model}, {"vit": Labelled(5)}, batch_size=2, device="cpu")
    rows = {(row.module, row.tensor): row.spread for row in result.rows}
    for tensor, key in ((INPUT, "input"), (OUTPUT, "output")):
        x = seen[key].flatten(0, 1)
        assert rows[name, tensor].std == pytest.approx(x.std(correction=0).item(), rel=1e-4)
        assert rows[name, tensor].sdam == pytest.approx(x.abs().mean(0).std(correction=0).item(), rel=1e-4)
    assert rows[name, OUTPUT].head_spread > 0 and rows[name, INPUT].head_spread is None
    assert rows["vit.layers.1.attention.o_proj", INPUT].head_spread > 0
    assert ("vit.layers.1.mlp.fc1", OUTPUT) not in rows
    assert result.images == {"vit": 5}


def test_transformers_and_cnns_stand_side_by_side():
    models = {"vit": build("vit"), "resnet": resnet()}
    assert [architecture_of(model) for model in models.values()] == [TRANSFORMER, CNN]
    data = {name: Labelled(5) for name in models}
    result = analyze_variation(models, data, device="cpu")
    summary = result.summary().set_index(["model", "tensor"])
    assert set(summary.index) == {
        ("vit", WEIGHT),
        ("vit", INPUT),
        ("vit", OUTPUT),
        ("resnet", WEIGHT),
        ("resnet", INPUT),
    }
    table = result.table()
    rows = table[(table["model"] == "resnet") & (table["tensor"] == WEIGHT)]
    line = summary.loc[("resnet", WEIGHT)]
    assert line["sdam"] == pytest.approx(rows["sdam"].mean()) and line["largest_kurtosis"] == rows["kurtosis"].max()
    assert line["module_spread"] == pytest.approx(numpy.std(rows["mean_abs"]) / numpy.mean(rows["mean_abs"]))
    assert set(rows["kind"]) == {"convolution", "pointwise convolution", "last layer"}


def convnext():
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    return ConvNextForImageClassification(config).eval()


def mobilenet():
    torch.manual_seed(0)
    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.35, num_labels=3)).eval()


@pytest.mark.parametrize("make", [resnet, convnext, mobilenet])
def test_every_convolution_of_a_cnn_is_measured_with_its_input(make):
    model = make()
    assert architecture_of(model) == CNN
    table = analyze_variation({"cnn": model}, {"cnn": Labelled(4)}, device="cpu").table()
    layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    for tensor in (WEIGHT, INPUT):
        rows = table[table["tensor"] == tensor].set_index("module")
        assert set(rows.index) == layers
        assert numpy.isfinite(rows[["mean_abs", "sdam", "kurtosis"]]).all(axis=None)
    weights = table[table["tensor"] == WEIGHT].set_index("module")["sdam"]
    for name in layers:
        channels = model.get_submodule(name).weight.detach().abs().flatten(1).mean(1)
        assert weights[name] == pytest.approx(channels.std(correction=0).item(), rel=1e-4)


def test_latent_weights_are_measured_and_packed_ones_refused():
    model = hf_vaq.quantize(build("vit"), QuantConfig())
    hf_vaq.calibrate(model, [images()])
    latent = analyze_variation({"m": model}).rows
    assert [row.spread for row in latent] == [row.spread for row in analyze_variation({"m": build("vit")}).rows]
    with pytest.raises(ValueError, match="tiny is packed: it has no latent weights"):
        analyze_variation({"tiny": hf_vaq.pack(model)})


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="dataset to analyze on is empty"):
        analyze_variation({"m": build("vit")}, {"m": Labelled(0)}, device="cpu")
