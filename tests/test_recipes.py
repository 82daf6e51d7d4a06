"""Every shipped recipe is valid, says what it is, and describes a model that can be built and quantized."""

import functools
import re

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification, PretrainedConfig, SwinConfig, ViTConfig
from transformers.quantizers import AutoHfQuantizer

from hf_vaq.job.models import new_model_config
from hf_vaq.nn import weight_quantized_modules
from hf_vaq.recipe import Recipe, load_recipe, shipped_recipes

RECIPES = shipped_recipes()

# Sizes of the models on the Hub that recipes start from, so that no test needs the network.
VIT_TINY = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
VIT_SMALL = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
SWIN_TINY = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], num_labels=1000)
SWIN_SMALL = SwinConfig(embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], num_labels=1000)
HUB_MODELS = {
    "WinKawaks/vit-tiny-patch16-224": VIT_TINY,
    "facebook/deit-tiny-patch16-224": VIT_TINY,
    "facebook/deit-small-patch16-224": VIT_SMALL,
    "microsoft/swin-tiny-patch4-window7-224": SWIN_TINY,
    "microsoft/swin-small-patch4-window7-224": SWIN_SMALL,
}
PUBLISHED_PARAMETERS = [
    (VIT_TINY, 5_717_416),
    (VIT_SMALL, 22_050_664),
    (SWIN_TINY, 28_288_354),
    (SWIN_SMALL, 49_606_258),
]
LINEARS_PER_BLOCK = 6  # query, key, value, output, and the two of the MLP


@pytest.fixture(params=sorted(RECIPES))
def recipe(request) -> Recipe:
    return load(request.param)


@functools.cache
def load(name: str) -> Recipe:
    # Without --use_cpu a recipe with bf16 is refused where there is no GPU, rightly.
    return load_recipe(name, ["--use_cpu"])


def full_precision_config(recipe: Recipe) -> PretrainedConfig:
    if recipe.model.model_config is not None:
        return new_model_config(recipe.model.model_config, [str(label) for label in range(10)])
    if recipe.model.model.startswith("./outputs/"):
        # What the full-precision phase of another recipe leaves.
        return full_precision_config(load(recipe.model.model.removeprefix("./outputs/").removesuffix("/float")))
    return HUB_MODELS[recipe.model.model]


def expected_layers(config: PretrainedConfig) -> int:
    """Quantized layers of a model: those of the blocks, patch embedding, classifier, and Swin's patch merging."""
    if config.model_type == "swin":
        return LINEARS_PER_BLOCK * sum(config.depths) + 2 + len(config.depths) - 1
    return LINEARS_PER_BLOCK * config.num_hidden_layers + 2


def test_there_are_recipes_of_every_family():
    assert {name.partition("/")[0] for name in RECIPES} == {"digits", "cifar10", "imagenette", "imagenet"}
    models = ("deit_tiny", "deit_small", "swin_tiny", "swin_small")
    widths = ("w2a2", "w3a3", "w4a4")
    assert {f"imagenet/{model}_{width}" for model in models for width in widths} <= set(RECIPES)


def test_recipe_begins_with_a_line_that_names_what_it_does(recipe):
    first = RECIPES[recipe.name].read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w.{20,}", first)


def test_name_of_recipe_states_its_bits(recipe):
    width = re.search(r"_w(\d)a(\d)(?:_|$)", recipe.name)
    if width is not None:
        assert (recipe.quantization.weight_bits, recipe.quantization.activation_bits) == tuple(
            map(int, width.groups())
        )


def test_recipe_states_no_field_twice(recipe):
    # YAML lets the second silently win.
    fields = re.findall(r"^(\w+):", RECIPES[recipe.name].read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(fields) == sorted(set(fields))


def test_family_has_a_readme_with_the_command_that_runs_the_recipe(recipe):
    family = RECIPES[recipe.name].parent
    readme = (family / "README.md").read_text(encoding="utf-8")
    assert f"{recipe.name.partition('/')[2]}" in readme
    assert f"hf-vaq train recipes/{family.name}/" in readme


def test_recipe_builds_its_model_with_the_bits_it_states(recipe):
    config = full_precision_config(recipe)
    quantization = recipe.quantization.config()
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
        AutoHfQuantizer.from_config(quantization, pre_quantized=False).preprocess_model(model=model)

    layers = dict(weight_quantized_modules(model))
    assert len(layers) == expected_layers(config)
    bits = [layer.weight_quantizer.bits for layer in layers.values()]
    blocks = LINEARS_PER_BLOCK * (sum(config.depths) if config.model_type == "swin" else config.num_hidden_layers)
    if not quantization.module_overrides:
        expected = [quantization.weight_bits] * blocks + [quantization.edge_bits] * (len(layers) - blocks)
        assert sorted(bits) == sorted(expected)
    attention = [name for name, _ in model.named_modules() if name.endswith("attention_quantizers.probabilities")]
    assert len(attention) == blocks // LINEARS_PER_BLOCK


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED_PARAMETERS)
def test_stand_in_for_a_hub_model_has_its_number_of_parameters(config, parameters):
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", sorted(name for name in RECIPES if name.startswith("imagenet/")))
def test_imagenet_recipe_has_the_published_hyperparameters(name):
    values = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    published = {
        "num_train_epochs": 150,
        "learning_rate": "5e-4",  # text to YAML; the type of the field makes it a number
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "bin_regularization": 0.01,
        "bin_regularization_start": 0.25,
        "edge_bits": 8,
        "scale_gradient": "l1",
    }
    assert {field: values[field] for field in published} == published
    assert load(name).training.learning_rate == 0.0005
    assert 4 * values["per_device_train_batch_size"] == 512


@pytest.mark.parametrize("name", sorted(name for name in RECIPES if name.startswith("imagenet/")))
def test_imagenet_recipe_states_needs_expectation_and_whose_figures_those_are(name):
    head = RECIPES[name].read_text(encoding="utf-8").split("# ---")[0]
    for word in ("Needs:", "Memory:", "Time:", "Data:", "Expect:", "published", "online"):
        assert word in head
