"""Bits by integer programming, against trying every allocation."""

import itertools

import pytest
import torch
import yaml
from analysis_helpers import Labelled
from helpers import FAMILIES, build, images
from safetensors.torch import save_file

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.analysis import Budget, Switchboard, allocate_bits, suggest_bits
from hf_vaq.analysis.units import find_units, module_overrides
from hf_vaq.nn import activation_quantizers, weight_quantized_modules
from hf_vaq.recipe import load_recipe


@pytest.mark.parametrize("seed", range(5))
def test_the_allocation_is_the_best_of_all_within_the_budget(seed):
    generator = torch.Generator().manual_seed(seed)
    units, bits = [f"u{i}" for i in range(5)], (2, 3, 4, 8)
    sizes = torch.randint(10, 100, (5,), generator=generator).tolist()
    noise = {u: dict(zip(bits, (torch.rand(4, generator=generator) * 1e-3).tolist(), strict=True)) for u in units}
    cost = {u: {b: b * size for b in bits} for u, size in zip(units, sizes, strict=True)}
    budget = 3.7 * sum(sizes)
    found = allocate_bits(noise, cost, budget)
    assert sum(cost[u][b] for u, b in found.items()) <= budget
    best = min(
        sum(noise[u][b] for u, b in zip(units, choice, strict=True))
        for choice in itertools.product(bits, repeat=5)
        if sum(cost[u][b] for u, b in zip(units, choice, strict=True)) <= budget
    )
    assert sum(noise[u][b] for u, b in found.items()) == pytest.approx(best, rel=1e-6)


def test_a_budget_below_the_lowest_bits_is_refused():
    with pytest.raises(ValueError, match="below 20"):
        allocate_bits({"a": {2: 0.1, 4: 0.0}}, {"a": {2: 20, 4: 40}}, 19)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("3.5", Budget(3.5)), ("900kB", Budget(size_bytes=900_000)), ("1.5 MiB", Budget(size_bytes=1_572_864))],
)
def test_budgets_are_read(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["1.9", "9", "-3", "many", "3kb", "nan"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match=f"suggest_bits is '{text}'"):
        Budget.parse(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_overrides_give_every_unit_its_bits_and_nothing_else(family):
    model = hf_vaq.quantize(build(family), QuantConfig())
    hf_vaq.calibrate(model, [images()])
    units = find_units(model, Switchboard(model))
    bits = {unit.name: 2 + index % 5 for index, unit in enumerate(units)}
    overrides = module_overrides(model, units, bits)
    assert len(overrides) == len(units)
    mixed = hf_vaq.quantize(build(family), QuantConfig(module_overrides=overrides))
    quantizers = dict(activation_quantizers(mixed))
    quantizers |= {
        f"{name}.weight_quantizer": layer.weight_quantizer for name, layer in weight_quantized_modules(mixed)
    }
    expected = {part.quantizer: bits[unit.name] for unit in units for part in unit.parts}
    assert {name: quantizer.bits for name, quantizer in quantizers.items()} == {
        name: expected.get(name, 8) for name in quantizers
    }


@pytest.fixture(scope="module")
def suggestion():
    return suggest_bits(
        build("vit"), Labelled(8), Labelled(8), Budget(3.5), QuantConfig(), candidates=(2, 3, 4, 6), device="cpu"
    )


def test_a_suggestion_keeps_to_its_budget_and_is_measured_beside_uniform_bits(suggestion):
    assert set(suggestion.bits) == {f"block.{i}.{kind}" for i in (0, 1) for kind in ("mhsa", "ffn")}
    assert 3 < suggestion.average_bits <= 3.5
    names = [line["model"] for line in suggestion.comparison]
    assert names == ["full precision", "suggestion", "uniform 3 bits", "uniform 4 bits"]
    sizes = [line["size_bytes"] for line in suggestion.comparison]
    assert sizes[2] < sizes[1] < sizes[3] < sizes[0]
    assert all(noise[2] > noise[6] for noise in suggestion.noise.values())


def test_the_size_of_a_suggestion_is_that_of_the_packed_model(suggestion, tmp_path):
    config = QuantConfig(weight_bits=2, activation_bits=2, module_overrides=suggestion.module_overrides)
    model = hf_vaq.quantize(build("vit"), config)
    hf_vaq.calibrate(model, [images()])
    tensors = hf_vaq.pack(model).state_dict()
    assert suggestion.size_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    save_file(tensors, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size > suggestion.size_bytes


def test_a_recipe_takes_the_suggestion_as_it_is(suggestion, tmp_path):
    recipe = {"model": "some/vit", "dataset": "digits", "use_cpu": True}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe) + suggestion.to_yaml())
    config = load_recipe(path).quantization.config()
    assert config.module_overrides == suggestion.module_overrides
    model = hf_vaq.quantize(build("vit"), config)
    assert {layer.weight_quantizer.bits for _, layer in weight_quantized_modules(model)} >= set(
        suggestion.bits.values()
    )


def test_a_size_that_the_lowest_bits_exceed_is_refused():
    with pytest.raises(ValueError, match="suggest_bits asks for 5,000 bytes; accepted: at least"):
        suggest_bits(
            build("vit"),
            Labelled(8),
            Labelled(8),
            Budget(size_bytes=5000),
            QuantConfig(),
            candidates=(2,),
            device="cpu",
        )
