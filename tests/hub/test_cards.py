"""Cards: compared whole with a stored copy, read back by the Hub's own classes, true to the files they come from."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
from card_helpers import EVALUATION, OPTIONS, RECIPE, RESULTS, STORED_CARD, write_full_folder
from helpers import FAMILIES, build, images
from huggingface_hub import EvalResult, ModelCard
from safetensors import safe_open
from transformers import ResNetConfig, ResNetForImageClassification

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.hub import CardOptions, complete_model_folder
from hf_vaq.hub.records import accuracies_of_evaluation, hub_id
from hf_vaq.hub.scheme import describe_scheme, planned_scheme
from hf_vaq.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """The folder with everything, and its card."""
    folder = tmp_path_factory.mktemp("full")
    write_full_folder(folder)
    complete_model_folder(folder, OPTIONS)
    return folder


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_card_with_everything_is_the_stored_one(full):
    stored = STORED_CARD.read_text(encoding="utf-8")
    assert text_of(full) == re.sub(r"(?<=written by hf_vaq )[\d.]+(?= )", __version__, stored)


def test_metadata_says_what_the_hub_indexes_and_survives_a_round_trip(full):
    card = ModelCard.load(full / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "start/vit-tiny"
    assert data["base_model_relation"] == "quantized"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-classification")
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["pictures/of-animals"]
    assert ModelCard(str(card)).data.to_dict() == data
    results = card.data.eval_results
    assert all(isinstance(result, EvalResult) for result in results)
    found = {(r.dataset_type, r.dataset_split, r.metric_type): r.metric_value for r in results}
    assert found == {
        ("pictures/of-animals", "test", "accuracy"): 0.9,
        ("pictures/of-animals", "test", "top_5_accuracy"): 1.0,
        ("zoo/photographs", "validation", "accuracy"): 0.782,
        ("zoo/photographs", "validation", "top_5_accuracy"): 0.974,
    }
    assert {r.dataset_revision for r in results if r.dataset_type == "zoo/photographs"} == {"0123abc"}


def test_what_is_not_there_is_left_out(tmp_path):
    model = hf_vaq.quantize(build(), QuantConfig())
    hf_vaq.calibrate(model, [images()])
    hf_vaq.pack(model).save_pretrained(tmp_path)
    facts = complete_model_folder(tmp_path, CardOptions(name="bare", where="me/bare"))
    text = text_of(tmp_path)
    for heading in ("## Results", "## Speed", "## Training", "## What happened to the weights"):
        assert heading not in text
    assert "No accuracy was measured" in text and "No speed was measured" in text and "No license" in text
    assert "ONNX: " not in text
    data = ModelCard(text).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "datasets", "model-index"} & set(data)
    assert facts.accuracies == [] and facts.training is None


def test_a_model_without_attention_gets_a_card_too(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic")
    model = hf_vaq.quantize(ResNetForImageClassification(config), QuantConfig(quantize_attention=False))
    hf_vaq.calibrate(model, [images()])
    hf_vaq.pack(model).save_pretrained(tmp_path)
    facts = complete_model_folder(tmp_path)
    assert [group.name for group in facts.scheme.groups] == ["last layer (classifier)"]
    assert "Inside attention nothing is quantized." in text_of(tmp_path)


def test_completing_a_folder_twice_changes_nothing(full):
    before = {path.name: path.read_bytes() for path in full.iterdir() if path.is_file()}
    complete_model_folder(full, OPTIONS)
    assert {path.name: path.read_bytes() for path in full.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("family", FAMILIES)
def test_scheme_has_the_bytes_of_the_file_and_is_known_before_training(family, tmp_path):
    config = QuantConfig(weight_bits=3, activation_bits=4, weight_granularity="channel")
    model = build(family)
    parameters = model.num_parameters()
    stock = model.config.__class__.from_dict(model.config.to_dict())
    stock.architectures = [type(model).__name__]
    hf_vaq.quantize(model, config)
    hf_vaq.calibrate(model, [images()])
    packed = hf_vaq.pack(model)
    packed.save_pretrained(tmp_path)
    scheme = describe_scheme(packed)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert scheme.size_bytes == stored
    assert sum(group.weights for group in scheme.groups) + scheme.float_parameters == scheme.parameters
    extra = scheme.parameters - parameters  # buffers without gradient, such as Swin's index of relative positions
    assert 0 <= extra <= 0.2 * parameters
    assert planned_scheme(stock, config) == scheme


def test_bits_of_the_table_are_those_of_the_layers(full):
    rows = [
        line for line in text_of(full).splitlines() if line.startswith(("| first", "| query", "| second", "| last"))
    ]
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:5]] for row in rows}
    assert cells["first layer (patch embedding)"] == ["1", "8", "8"]
    assert cells["query, key and value projections"] == ["6", "2", "3"]
    assert cells["first MLP layers"] == ["2", "3", "3"]  # overridden
    assert cells["second MLP layers"] == ["2", "2", "3"]


def test_ids_on_the_hub_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "photos").mkdir(parents=True)
    assert hub_id("facebook/deit-tiny-patch16-224") == "facebook/deit-tiny-patch16-224"
    for name in ("data/photos", "digits", "./some/folder", "/a/b", "../a", "a/b/c", "a/", None, "a b/c"):
        assert hub_id(name) is None, name


@pytest.mark.parametrize(
    "name",
    ["run: w2a2", "x # y", "a\nlicense: mit", "a\n---\nb", "a|b", "<script>", '"; import os; "', "```", "{{ 7 }}"],
)
def test_names_are_text_in_every_part_of_a_card(name, tmp_path):
    write_full_folder(tmp_path)
    recipe = json.dumps(RECIPE | {"teacher": name, "lr_scheduler_type": name})
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"dataset": name, "split": name, "recipe": name}))
    facts = complete_model_folder(tmp_path, CardOptions(name=name, where=name, tags=[name]))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.model_name == name and name in card.data.tags and card.data.license is None
    assert {result.dataset_name for result in card.data.eval_results} == {name, "zoo/photographs"}
    assert "<script>" not in re.sub(r"`[^`\n]+`|```python.*?```", "", card.text.replace("\\<", ""), flags=re.S)
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    stored = STORED_CARD.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len([line for line in stored if line.startswith("| ")])  # the schedule
    calls = [line for line in card.text.splitlines() if "from_pretrained(" in line]
    for line in calls:
        (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
        assert call.args[0].value == facts.where == name


def test_secrets_of_a_recipe_reach_no_card(tmp_path):
    write_full_folder(tmp_path)
    place = "s3://KEY:SECRET@bucket/photos"
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(RECIPE | {"dataset": place, "soft_labels": "file:///data/me/labels"})
    )
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"dataset": place, "api_key": "SECRET"}))
    complete_model_folder(tmp_path)
    text = text_of(tmp_path)
    assert "s3://bucket/photos" in text and "stored soft labels, labels." in text
    assert "SECRET" not in text and "KEY" not in text and "/data/me" not in text


def test_evaluations_of_several_packed_models_and_other_files_are_refused():
    twice = EVALUATION | {"models": [*EVALUATION["models"], EVALUATION["models"][1]]}
    with pytest.raises(ValueError, match="holds 2 packed models"):
        accuracies_of_evaluation(twice, "twice.json")
    with pytest.raises(ValueError, match=r"other\.json is not what 'hf-vaq evaluate --output' writes"):
        accuracies_of_evaluation({"data": {}}, "other.json")


def test_damaged_files_beside_a_model_are_named(tmp_path):
    write_full_folder(tmp_path)
    (tmp_path / "benchmark.json").write_text(json.dumps({"machine": {}, "speeds": {"8": {"float32": {}}}}))
    with pytest.raises(ValueError, match=r"benchmark\.json is not what 'hf-vaq benchmark --output' writes"):
        complete_model_folder(tmp_path)
    (tmp_path / "benchmark.json").write_text("{")
    with pytest.raises(ValueError, match=r"benchmark\.json' is no JSON file"):
        complete_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", RESULTS | {"quantized": RESULTS["quantized"] | {"top1": "90"}}),
        ("results.json", RESULTS | {"full_precision": RESULTS["full_precision"] | {"size_bytes": 10**400}}),
        ("results.json", RESULTS | {"dataset": ["x"]}),
        ("results.json", []),
        ("evaluation/zoo.json", EVALUATION | {"data": EVALUATION["data"] | {"num_images": None}}),
        ("training_log.json", [{"loss": "low", "step": 1}]),
        ("training_log.json", 5),
        ("recipe.yaml", RECIPE | {"model": 5}),
    ],
)
def test_files_of_another_form_beside_a_model_are_named(file, content, tmp_path):
    write_full_folder(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{re.escape(file)}'? is not what .* writes?: "):
        complete_model_folder(tmp_path)


def test_cards_of_released_recipes_are_those_of_the_committed_results():
    spec = importlib.util.spec_from_file_location("released", ROOT / "hub_cards" / "released.py")
    released = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(released)
    cards = released.released_cards()
    assert set(cards) == set(released.RECIPES.values())
    for name, card in cards.items():
        assert released.card_path(name).read_text(encoding="utf-8") == card, "run python hub_cards/released.py"
        assert ModelCard(card).data.eval_results


def test_template_travels_in_the_wheel():
    build_settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"hub_cards/templates" = "hf_vaq/hub_card_templates"' in build_settings
    assert (ROOT / "hub_cards" / "templates" / "model_card.md.jinja").is_file()
