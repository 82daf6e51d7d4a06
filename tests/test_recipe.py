"""Reading recipes: files, overrides, types, and what is refused."""

import dataclasses

import pytest
import yaml

from hf_vaq import QuantConfig
from hf_vaq.recipe import QuantArguments, find_recipe, load_recipe, shipped, shipped_recipes, summary
from hf_vaq.recipe.convert import convert
from hf_vaq.recipe.parsing import SECTIONS

MINIMAL = {"model": "owner/name", "dataset": "digits"}


@pytest.fixture
def recipe_file(tmp_path):
    def write(**values):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **values}))
        return path

    return write


def test_numbers_that_yaml_reads_as_text_become_numbers(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: owner/name\ndataset: digits\nlearning_rate: 5e-4\nmax_steps: 1e3\nsave_strategy: no\n")
    recipe = load_recipe(path)
    assert recipe.training.learning_rate == 5e-4
    assert recipe.training.max_steps == 1000 and isinstance(recipe.training.max_steps, int)
    assert recipe.training.save_strategy == "no"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("7", int, 7),
        (7.0, int, 7),
        (3, float, 3.0),
        ("none", int | None, None),
        (None, float | None, None),
        ("none", str | None, "none"),
        (True, bool, True),
        ("False", bool, False),
        (2, str, "2"),
        (False, str | None, "no"),
        ("a", list[str], ["a"]),
        (["0.1", 0.2], list[float], [0.1, 0.2]),
        ({"a": 1}, dict | str | None, {"a": 1}),
        ("{a: 1}", dict | str | None, "{a: 1}"),
        (2**53 + 1, int, 2**53 + 1),
        (str(2**53 + 1), int | None, 2**53 + 1),
    ],
)
def test_values_take_the_type_of_their_field(value, hint, expected):
    converted = convert("field", value, hint)
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "accepted"),
    [
        ("two", int, "a whole number"),
        (2.5, int | None, "a whole number, none"),
        (True, float, "a finite number"),
        (1, bool, "true or false"),
        (None, float, "a finite number"),
        (["a"], str, "text"),
        ("x", dict | None, "a mapping, none"),
        (["x"], list[int], "a list"),
        ("inf", float, "a finite number"),
        (float("nan"), float | None, "a finite number, none"),
        ("1e400", float | None, "a finite number, none"),
        (float("inf"), int, "a whole number"),
        ([1.0, float("nan")], list[float], "a list"),
        ({"a": [{"b": float("-inf")}]}, dict | str | None, "finite numbers only"),
        (b"x", str, "text"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_what_is_accepted(value, hint, accepted):
    with pytest.raises(ValueError, match=f"^field is .*; accepted: {accepted}"):
        convert("field", value, hint)


def test_choices_of_transformers_are_named(recipe_file):
    with pytest.raises(ValueError, match="eval_strategy is 'never'; accepted: 'no', 'steps', 'epoch'"):
        load_recipe(recipe_file(eval_strategy="never"))


def test_the_command_line_wins_over_the_file(recipe_file):
    path = recipe_file(learning_rate=0.1, weight_bits=2, bf16=True)
    overrides = ["--learning-rate=5e-4", "--weight_bits", "none", "--bf16", "false", "--torch_compile"]
    overrides += ["--modules_to_not_convert", "classifier", "pooler"]
    recipe = load_recipe(path, overrides)
    assert recipe.training.learning_rate == 5e-4
    assert recipe.training.torch_compile is True and recipe.training.bf16 is False
    assert recipe.quantization.config().weight_bits is None
    assert recipe.quantization.config().modules_to_not_convert == ["classifier", "pooler"]


def test_mappings_may_come_from_the_command_line(recipe_file):
    recipe = load_recipe(recipe_file(), ["--module_overrides", "{'*.fc1': {weight_bits: 8}}"])
    assert recipe.quantization.config().module_overrides == {"*.fc1": {"weight_bits": 8}}


def test_the_recipe_as_run_reads_back_as_the_same_recipe(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(num_train_epochs=3), ["--seed", "5", "--teacher", "none"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "again.yaml")
    assert again.values == recipe.values
    assert again.training.seed == 5 and again.model.teacher is None


def test_the_output_folder_is_named_after_the_recipe(recipe_file):
    assert load_recipe(recipe_file()).training.output_dir == "outputs/mine"
    assert load_recipe("digits/vit_w2a2").training.output_dir == "outputs/digits/vit_w2a2"


def test_a_misspelt_field_in_the_file_suggests_the_right_one(recipe_file):
    with pytest.raises(
        ValueError, match=r"Unknown field 'weight_bit' in recipe .*mine\.yaml.*Did you mean 'weight_bits'\?"
    ):
        load_recipe(recipe_file(weight_bit=2))


def test_a_misspelt_field_on_the_command_line_suggests_the_right_one(recipe_file):
    with pytest.raises(ValueError, match=r"Unknown field 'learning_rat'.*Did you mean 'learning_rate'"):
        load_recipe(recipe_file(), ["--learning-rat", "1"])


def test_a_field_like_no_other_points_to_the_help(recipe_file):
    with pytest.raises(ValueError, match=r"Unknown field 'zzzzzz'.*'hf-vaq train --help'"):
        load_recipe(recipe_file(zzzzzz=1))


def test_a_word_that_belongs_to_no_field_is_refused(recipe_file):
    with pytest.raises(ValueError, match="Unexpected argument '5'"):
        load_recipe(recipe_file(), ["5"])


@pytest.mark.parametrize("content", ["a: [1", "- a\n- b\n", "", "1: 2\n"])
def test_what_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"mine\.yaml(, line \d+ is not valid YAML| holds no mapping)"):
        load_recipe(path)


def test_python_objects_in_yaml_are_not_built(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": None}, "exactly one of them"),
        ({"model_config": {"model_type": "vit"}}, "exactly one of them"),
        ({"model": None, "model_config": {"hidden_size": 8}}, "model_config has no model_type"),
        ({"model": None, "model_config": {"model_type": "vit"}}, "float_num_train_epochs is 0; accepted .*above 0"),
        ({"float_num_train_epochs": 2}, "float_num_train_epochs is 2; accepted with model: 0"),
        ({"dataset": None}, "dataset is missing"),
        ({"weight_bits": 9}, "weight_bits"),
        ({"weight_granularity": "row"}, "weight_granularity='row'"),
        ({"crop_scale": 2}, "crop_scale is 2"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std is \[0.5, 0.0, 0.5\]; accepted: three numbers above 0"),
        ({"learning_rate": "inf"}, "learning_rate is 'inf'; accepted: a finite number"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs is inf; accepted: a finite number"),
        ({"warmup_steps": float("nan")}, "warmup_steps is nan; accepted: a finite number"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: expected a whole number, 1 or more"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1: expected a whole number, 1 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"num_train_epochs": -1}, "num_train_epochs"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0"),
        ({"seed": 2**32}, r"seed=4294967296: expected a whole number from 0"),
        ({"label_smoothing_factor": 1}, "label_smoothing_factor"),
        ({"float_learning_rate": -1}, "float_learning_rate is -1.0; accepted: a finite number, 0 or more"),
        ({"model": None, "model_config": "{model_type: vit, layer_norm_eps: .nan}"}, "model_config is .*finite"),
        ({"distillation_temperature": 0}, "distillation_temperature"),
    ],
)
def test_values_that_make_no_sense_are_refused_when_the_recipe_is_read(recipe_file, values, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(**values))


def test_the_fields_of_quantization_are_those_of_quant_config():
    of_the_checkpoint = {"packed", "format_version", "hf_vaq_version", "quant_method"}
    theirs = {field.name: field.default for field in dataclasses.fields(QuantConfig)}
    ours = {field.name: field.default for field in dataclasses.fields(QuantArguments)}
    assert ours == {name: default for name, default in theirs.items() if name not in of_the_checkpoint}


def test_no_field_belongs_to_two_sections():
    names = [field.name for section in SECTIONS for field in dataclasses.fields(section)]
    assert len(names) == len(set(names))


def test_the_full_precision_phase_takes_its_own_fields_and_shares_the_rest(tmp_path):
    given = {"num_train_epochs": 7, "learning_rate": 0.25, "weight_decay": 0.125, "label_smoothing": 0.5}
    overrides = [f"--float_{name}={value}" for name, value in given.items()]
    recipe = load_recipe("digits/vit_w2a2", [*overrides, "--max_steps", "9", "--seed", "4"])
    arguments = recipe.float_training_arguments(tmp_path)
    assert (arguments.num_train_epochs, arguments.max_steps, arguments.learning_rate) == (7, -1, 0.25)
    assert (arguments.weight_decay, arguments.label_smoothing_factor) == (0.125, 0.5)
    assert arguments.seed == 4 and arguments.output_dir == str(tmp_path)
    assert arguments.per_device_train_batch_size == recipe.training.per_device_train_batch_size


@pytest.mark.parametrize(
    "name",
    ["digits/vit_w2a2", "digits/vit_w2a2.yaml", "recipes/digits/vit_w2a2.yaml", "./recipes/digits/vit_w2a2.yaml"],
)
def test_shipped_recipes_are_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == shipped_recipes()["digits/vit_w2a2"]


def test_recipes_inside_an_installed_package_are_preferred(tmp_path, monkeypatch):
    (tmp_path / "shipped_recipes" / "family").mkdir(parents=True)
    (tmp_path / "shipped_recipes" / "family" / "one.yaml").write_text("\n# First line.\n# Second.\nmodel: x\n")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    assert list(shipped_recipes()) == ["family/one"]
    assert summary(find_recipe("family/one")) == "First line."


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"no recipe 'digit/vit_w2a2'.*Did you mean 'digits/vit_w2a2'\?"):
        find_recipe("digit/vit_w2a2")
