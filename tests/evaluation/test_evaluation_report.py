"""The report and what becomes of it in a card."""

import json

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from hf_vaq.evaluation import BootstrapSettings, EvaluatedModel, EvaluationReport, EvaluationResult, eval_results

DATA = {
    "dataset": "imagenet-1k",
    "dataset_id": "ILSVRC/imagenet-1k",
    "dataset_revision": "abc123",
    "dataset_config": None,
    "split": "validation",
    "max_images": None,
    "seed": 0,
}


def model(name: str, ranks: list[int], execution: str = "float32") -> EvaluatedModel:
    places = np.asarray(ranks, dtype=np.int8)
    result = EvaluationResult(
        top1=100 * float((places < 1).mean()),
        top5=100 * float((places < 5).mean()),
        num_images=len(ranks),
        images_per_second=12.344,
        seconds=1.0,
        ranks=places,
        classes=np.arange(3),
    )
    return EvaluatedModel(name, None, "full precision", execution, 1_234_567, result)


def report(*models: EvaluatedModel, **data) -> EvaluationReport:
    return EvaluationReport(models, DATA | data, {"device": "cpu"}, BootstrapSettings(resamples=500))


def test_figures_are_percent_and_differences_points():
    content = report(model("a", [0, 0, 1, 5]), model("b", [0, 1, 1, 5])).to_dict()
    first, second = content["models"]
    assert (first["top1"], first["top5"], second["top1"], second["top5"]) == (50, 75, 25, 75)
    assert second["difference"]["top1"] == -25 and second["difference"]["to"] == "a"
    # One of four images differs, for the worse: no resample can show an improvement, and hardly one less than -100.
    assert second["difference"]["top1_interval"][1] == 0
    assert second["difference"]["top5_interval"] == [0, 0]
    assert content["data"]["num_images"] == 4 and content["data"]["num_classes"] == 3
    assert json.loads(json.dumps(content)) == content


def test_the_table_has_a_row_a_model_and_differences_from_the_second_on():
    lines = report(model("a", [0, 0, 1, 5]), model("bb", [0, 1, 1, 5], "integer")).table().splitlines()
    assert "difference" in lines[0] and lines[0].count("95 % interval") == 2
    assert lines[2].split()[0] == "a" and "-25.00" not in lines[2]
    assert lines[3].split()[:3] == ["bb", "25.00", "%"] and "-25.00" in lines[3] and lines[3].endswith("integer")
    assert "1,234.6 kB" in lines[3] and "12.3" in lines[3]
    assert lines[4] == "4 images of imagenet-1k, split validation, of 3 classes"


def test_one_model_has_no_difference():
    assert "difference" not in report(model("a", [0, 1])).table()


def test_the_execution_is_that_of_the_model_or_its_type():
    class Fixed(nn.Linear):
        config, dtype = type("Config", (), {}), torch.bfloat16

    result = model("a", [0]).result
    assert EvaluatedModel.of("a", Fixed(1, 1), 1, result).execution == "bfloat16"
    Fixed.execution = "integer (somewhere)"
    assert EvaluatedModel.of("a", Fixed(1, 1), 1, result).execution == "integer (somewhere)"


def test_a_card_gets_fractions_under_the_hubs_name_of_the_data_set():
    top1, top5 = eval_results(report(model("a", [0, 0, 1, 5])).to_dict())
    assert top1 == EvalResult(
        task_type="image-classification",
        task_name="Image Classification",
        dataset_type="ILSVRC/imagenet-1k",
        dataset_name="ILSVRC/imagenet-1k",
        dataset_split="validation",
        dataset_revision="abc123",
        metric_type="accuracy",
        metric_name="Top-1 accuracy",
        metric_value=0.5,
    )
    assert (top5.metric_name, top5.metric_value) == ("Top-5 accuracy", 0.75)


def test_both_metrics_stand_in_one_entry_of_the_model_index():
    results = eval_results(report(model("a", [0, 0, 1, 5])).to_dict())
    card = yaml.safe_load(ModelCardData(model_name="a", eval_results=results).to_yaml())
    (entry,) = card["model-index"]
    (result,) = entry["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.5, 0.75]
    assert result["dataset"]["type"] == "ILSVRC/imagenet-1k" and result["dataset"]["split"] == "validation"


def test_a_subset_is_said_to_be_one():
    (top1, _) = eval_results(report(model("a", [0, 1]), max_images=2, seed=7).to_dict())
    assert top1.dataset_args == {"max_images": 2, "seed": 7}


def test_no_folder_of_this_machine_gets_into_a_card():
    content = report(model("a", [0]), dataset="some/where/pictures", dataset_id=None, dataset_revision=None).to_dict()
    (top1, _) = eval_results(content)
    assert (top1.dataset_type, top1.dataset_name) == ("pictures", "pictures")


def test_of_several_models_one_is_named():
    content = report(model("a", [0]), model("b", [1])).to_dict()
    assert eval_results(content, "b")[0].metric_value == 0
    with pytest.raises(ValueError, match="model is None; accepted: a model of the evaluation: a, b"):
        eval_results(content)
    with pytest.raises(ValueError, match="model is 'c'"):
        eval_results(content, "c")


def test_evaluates_push_to_hub_takes_the_same_fields(monkeypatch):
    # evaluate.push_to_hub asks for both repositories and then writes the metadata; only the latter is looked at here.
    import evaluate.hub

    pushed = {}
    monkeypatch.setattr(evaluate.hub, "dataset_info", lambda name: None)
    monkeypatch.setattr(evaluate.hub, "model_info", lambda name: None)
    monkeypatch.setattr(evaluate.hub, "metadata_update", lambda **given: pushed.update(given))
    (top1, _) = eval_results(report(model("a", [0, 1])).to_dict())
    fields = {name: value for name, value in vars(top1).items() if value is not None}
    evaluate.push_to_hub(model_id="me/a", **fields)
    (entry,) = pushed["metadata"]["model-index"]
    ours = yaml.safe_load(ModelCardData(model_name="a", eval_results=[top1]).to_yaml())["model-index"][0]
    assert entry["results"] == ours["results"]
