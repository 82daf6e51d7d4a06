"""`hf-vaq train`: the whole main job, and what it refuses."""

import io
import json
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
import yaml
from cli_helpers import write_recipe
from helpers import TINY_RECIPE
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

from hf_vaq import QuantConfig
from hf_vaq.cli import main
from hf_vaq.data import load_digits
from hf_vaq.inference import set_execution
from hf_vaq.job.output import claim_output_folder
from hf_vaq.job.run import _Run
from hf_vaq.job.run_files import RunRecord, foreign_files
from hf_vaq.nn import PackedLinear, QuantLinear
from hf_vaq.training import last_complete_checkpoint


def test_the_main_job_writes_its_results(tiny_run):
    results = tiny_run.results
    assert (results["recipe"], results["bits"], results["seed"]) == ("tiny", "W2A2", 3)
    for name, folder in (("full_precision", "float"), ("quantized", "packed")):
        size = (tiny_run.folder / folder / "model.safetensors").stat().st_size
        assert results[name]["size_bytes"] == size and results[name]["num_images"] == 40
        assert 0 <= results[name]["top1"] <= results[name]["top5"] <= 100
    assert results["quantized"]["size_bytes"] < results["full_precision"]["size_bytes"] / 2
    assert results["difference"] == results["quantized"]["top1"] - results["full_precision"]["top1"]
    phases = {name: value for name, value in results["seconds"].items() if name != "total"}
    assert len(phases) == 3 and sum(phases.values()) <= results["seconds"]["total"] + 0.1


def test_the_main_job_ends_with_a_table(tiny_run):
    results = tiny_run.results
    for label, name in (("full precision", "full_precision"), ("W2A2, packed", "quantized")):
        row = next(line for line in tiny_run.stdout.splitlines() if line.startswith(label))
        size = f"{results[name]['size_bytes'] / 1000:,.1f} kB"
        assert row.split(label)[1].split("%")[0].strip() == f"{results[name]['top1']:.2f}" and row.endswith(size)
    assert re.search(rf"^difference +{re.escape(format(results['difference'], '+.2f'))} points", tiny_run.stdout, re.M)
    assert f"{results['seconds']['total']:.1f} seconds" in tiny_run.stdout
    assert "training the W2A2 model for 2 epochs" in tiny_run.stderr


def test_the_output_folder_holds_the_recipe_as_it_was_run_and_nothing_temporary(tiny_run):
    names = {path.name for path in tiny_run.folder.iterdir()}
    models = {"float", "trained", "packed", "checkpoint-4", "checkpoint-8"}
    assert names == {"run.json", "recipe.yaml", "results.json", "training_log.json", "oscillation"} | models
    recipe = yaml.safe_load((tiny_run.folder / "recipe.yaml").read_text())
    assert recipe["seed"] == 3 and recipe["learning_rate"] == 5e-4 and recipe["output_dir"] == str(tiny_run.folder)


def test_the_packed_folder_gives_the_logits_of_the_trained_one(tiny_run):
    trained = AutoModelForImageClassification.from_pretrained(tiny_run.folder / "trained").eval()
    packed = AutoModelForImageClassification.from_pretrained(tiny_run.folder / "packed").eval()
    set_execution(packed, "simulation")  # integer arithmetic rounds the last bit otherwise
    assert any(isinstance(module, QuantLinear) for module in trained.modules())
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    assert packed.config.quantization_config.packed
    pixel_values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(trained(pixel_values=pixel_values).logits, packed(pixel_values=pixel_values).logits)


def test_the_full_precision_model_is_not_quantized_and_knows_the_digits(tiny_run):
    model = AutoModelForImageClassification.from_pretrained(tiny_run.folder / "float")
    assert not hasattr(model.config, "quantization_config")
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}


def test_a_pipeline_reads_the_packed_folder(tiny_run):
    classifier = pipeline("image-classification", model=str(tiny_run.folder / "packed"), device="cpu")
    test = load_digits()["test"].select(range(40))
    predictions = [result[0]["label"] for result in classifier(list(test["image"]))]
    top1 = 100 * np.mean(
        [prediction == str(label) for prediction, label in zip(predictions, test["label"], strict=True)]
    )
    assert top1 == pytest.approx(tiny_run.results["quantized"]["top1"])


def test_the_same_recipe_gives_the_same_model_and_resuming_does_too(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.folder, out)
    for name in ("packed", "trained", "checkpoint-8"):
        shutil.rmtree(out / name)
    (out / "results.json").unlink()
    command = ["train", str(tiny_run.recipe), "--seed", "3", "--output_dir", str(out)]
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert (out / "packed" / "model.safetensors").read_bytes() == (
        tiny_run.folder / "packed" / "model.safetensors"
    ).read_bytes()
    assert main([*command, "--overwrite_output_dir"]) == 0
    capsys.readouterr()
    assert "overwrite_output_dir" not in (out / "recipe.yaml").read_text()
    for name in ("float", "packed"):
        first = tiny_run.folder / name / "model.safetensors"
        assert (out / name / "model.safetensors").read_bytes() == first.read_bytes()


def test_without_training_epochs_the_model_is_initialised_and_calibrated(tiny_run, tmp_path, capsys):
    recipe = write_recipe(
        tmp_path,
        model=str(tiny_run.folder / "float"),
        model_config=None,
        teacher="none",
        float_num_train_epochs=0,
        num_train_epochs=0,
        weight_bits=8,
        activation_bits=8,
    )
    out = tmp_path / "out"
    assert main(["train", str(recipe), "--output_dir", str(out)]) == 0
    assert "W8A8" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["full_precision"]["top1"] == tiny_run.results["full_precision"]["top1"]
    start = AutoModelForImageClassification.from_pretrained(tiny_run.folder / "float")
    trained = AutoModelForImageClassification.from_pretrained(out / "trained")
    for name, weight in start.named_parameters():
        assert torch.equal(trained.get_parameter(name), weight), name
    assert trained.config.quantization_config == QuantConfig(weight_bits=8, activation_bits=8)


def test_weights_alone_can_be_quantized(tmp_path, capsys):
    recipe = write_recipe(tmp_path, activation_bits=None, edge_bits=None, num_train_epochs=1, teacher=None)
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "out")]) == 0
    assert "W2A32, packed" in capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    """Run a command that must fail with one clear line, and return it."""
    assert main(["train", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("hf-vaq train: error: ")]
    assert len(errors) == 1 and "Traceback" not in captured.err
    return errors[0]


def test_a_folder_in_use_is_refused_before_any_work(tiny_run, capsys):
    before = sorted(tiny_run.folder.iterdir())
    message = refused(capsys, tiny_run.recipe, "--output_dir", tiny_run.folder)
    assert "is not empty" in message and "--overwrite_output_dir true" in message
    assert sorted(tiny_run.folder.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    message = refused(capsys, write_recipe(tmp_path), "--output_dir", tmp_path / "file" / "out")
    assert "output_dir" in message or "cannot be used as a folder" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_column": "img"}, "image_column is 'img'; the data set has the columns: image, label"),
        ({"label_column": "class"}, "label_column is 'class'; the data set has the columns: image, label"),
        ({"eval_split": "validation"}, "split is 'validation'; the data set has: train, test"),
        ({"train_split": "train[:0]"}, "split 'train[:0]' is empty"),
        ({"weight_bit": 2}, "Did you mean 'weight_bits'?"),
        (
            {"model_config": {"model_type": "vitt"}},
            "model_type is 'vitt', which transformers does not know. Did you mean 'vit'?",
        ),
        ({"model_config": {"model_type": "vit", "hiden_size": 3}}, "Did you mean 'hidden_size'?"),
        ({"model_config": {"model_type": "vit", "image_size": 8, "num_channels": 1}}, "num_channels is 1"),
    ],
)
def test_bad_recipes_are_refused_before_any_training(tmp_path, capsys, values, message):
    recipe = write_recipe(tmp_path, **values)
    assert message in refused(capsys, recipe, "--output_dir", tmp_path / "out")
    # so that the corrected recipe can be run at once
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_model_of_another_image_size_than_its_processor_is_refused(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run.folder / "float", tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"height": 12, "width": 12}}))
    recipe = write_recipe(tmp_path, model=str(tmp_path / "model"), model_config=None, float_num_train_epochs=0)
    message = refused(capsys, recipe, "--output_dir", tmp_path / "out")
    assert "images of 12 x 12 pixels, the model's image_size is 8 x 8" in message


def test_labels_that_the_model_does_not_know_are_refused(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run.folder / "float", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"]["3"] = "drei"
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    path.write_text(json.dumps(config))
    recipe = write_recipe(tmp_path, model=str(tmp_path / "model"), model_config=None, float_num_train_epochs=0)
    assert "labels that the model does not know: '3'" in refused(capsys, recipe, "--output_dir", tmp_path / "out")


def test_a_model_that_is_quantized_already_is_refused(tiny_run, tmp_path, capsys):
    recipe = write_recipe(tmp_path, model=str(tiny_run.folder / "packed"), model_config=None, float_num_train_epochs=0)
    assert "is quantized already" in refused(capsys, recipe, "--output_dir", tmp_path / "out")


def test_a_model_that_does_not_exist_is_refused(tmp_path, capsys):
    recipe = write_recipe(tmp_path, model=str(tmp_path / "absent"), model_config=None, float_num_train_epochs=0)
    message = refused(capsys, recipe, "--output_dir", tmp_path / "out")
    assert f"The model '{tmp_path / 'absent'}' cannot be loaded" in message


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_image_ends_the_run_with_its_row(tmp_path, capsys, monkeypatch, num_workers):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": None}] * 16
    images[5] = {"bytes": buffer.getvalue()[:-40], "path": "five.png"}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1"])})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 8}, features=features).to_parquet(
            tmp_path / "data" / f"{split}.parquet"
        )
    recipe = write_recipe(
        tmp_path,
        dataset=str(tmp_path / "data"),
        train_split="train",
        eval_split="test",
        dataloader_num_workers=num_workers,
    )
    message = refused(capsys, recipe, "--output_dir", tmp_path / "out")
    assert "The image in column 'image', row 5 (file five.png) cannot be read" in message
    assert not (tmp_path / "out" / "float").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(tmp_path, capsys):
    recipe = write_recipe(tmp_path, float_learning_rate=1e30, max_grad_norm=0)
    assert "not finite" in refused(capsys, recipe, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out" / "float").exists()


def test_a_run_is_not_resumed_with_another_recipe_and_stays_as_it_is(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.folder, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    command = ["train", str(tiny_run.recipe), "--output_dir", str(out), "--resume_from_checkpoint", "true"]
    assert main([*command, "--seed", "4"]) == 1
    assert "seed was 3 and is 4" in capsys.readouterr().err
    record = RunRecord.read(out)
    record.inputs["training images"] = "64 rows, hash of others"
    record.write()
    before[out / "run.json"] = (out / "run.json").read_bytes()
    assert main([*command, "--seed", "3"]) == 1
    assert "training images: 64 rows, hash of others then, 64 rows, hash" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_whose_full_precision_model_was_replaced_is_not_resumed(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.folder, out)
    weights = load_file(out / "float" / "model.safetensors")
    save_file({name: x + 1e-3 for name, x in weights.items()}, out / "float" / "model.safetensors", {"format": "pt"})
    message = refused(capsys, tiny_run.recipe, "--output_dir", out, "--resume_from_checkpoint", "true", "--seed", "3")
    assert "full-precision model of the run: hash" in message


def test_a_checkpoint_of_another_run_is_not_resumed_into_a_folder_that_holds_one(tiny_run, tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_run.folder, here)
    shutil.copytree(tiny_run.folder, there)
    checkpoint = last_complete_checkpoint(there)
    message = refused(capsys, tiny_run.recipe, "--output_dir", here, "--resume_from_checkpoint", checkpoint)
    assert "holds another run" in message


def test_what_fails_in_the_first_step_leaves_nothing_that_blocks_the_corrected_run(tmp_path, capsys, monkeypatch):
    def fail(*arguments, **keywords):
        raise ValueError("no such luck")

    monkeypatch.setattr("hf_vaq.training.VaqTrainer.training_step", fail)
    assert "no such luck" in refused(capsys, write_recipe(tmp_path), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_finished_run_is_replaced_with_all_that_it_wrote_and_nothing_else(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.folder, out)
    (out / "packed" / "notes.txt").write_text("mine")
    command = [tiny_run.recipe, "--output_dir", out, "--overwrite_output_dir", "true"]
    assert "holds 'packed/notes.txt', which no run wrote" in refused(capsys, *command)
    (out / "packed" / "notes.txt").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # What is wrong with the new run is found before the old one goes.
    assert "cannot be loaded" in refused(capsys, *command, "--teacher", tmp_path / "absent")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    model = ["--model", out / "float", "--model_config", "none", "--float_num_train_epochs", "0"]
    assert "model is" in refused(capsys, *command, *model) and (out / "float").is_dir()
    record = RunRecord.read(out)
    assert foreign_files(record, out) == []
    claim_output_folder(out, overwrite=True)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": "no/such/teacher"}, "teacher is 'no/such/teacher', which cannot teach this model: The model"),
        ({"model_config": {"model_type": "resnet"}}, "ResNet"),
        ({"module_overrides": {"*.no_such": {"weight_bits": 3}}}, r"matches '*.no_such'"),
        ({"model_config": {"model_type": "resnet"}, "quantize_attention": False}, "'resnet' has no image_size"),
        (
            {"model_config": {**TINY_RECIPE["model_config"], "num_attention_heads": 0}},
            "the configuration of type 'vit' makes no model (ZeroDivisionError",
        ),
        (
            {"model_config": {**TINY_RECIPE["model_config"], "hidden_act": "nope"}},
            "the configuration of type 'vit' makes no model (KeyError: 'nope')",
        ),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"foo": 1}},
            "training cannot begin with lr_scheduler_type <SchedulerType.COSINE",
        ),
        ({"report_to": "nonsense"}, "training cannot begin with report_to ['nonsense']"),
    ],
)
def test_models_are_checked_before_the_full_precision_phase(tmp_path, capsys, monkeypatch, values, message):
    monkeypatch.setattr(_Run, "_full_precision", lambda self: pytest.fail("work was begun"))
    assert message in refused(capsys, write_recipe(tmp_path, **values), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_cannot_teach_is_found_before_the_full_precision_phase(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_Run, "_full_precision", lambda self: pytest.fail("work was begun"))
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    shutil.copytree(tiny_run.folder / "float", teacher)
    recipe = write_recipe(tmp_path, teacher=str(teacher))
    config = json.loads((teacher / "config.json").read_text())
    names = {**config["id2label"], "3": "drei"}
    changed = {**config, "id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
    (teacher / "config.json").write_text(json.dumps(changed))
    assert "only the teacher has 'drei'" in refused(capsys, recipe, "--output_dir", out)
    (teacher / "config.json").write_text(json.dumps(config))
    weights = load_file(teacher / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    assert "logits (9 of them finite); accepted: 10 finite ones" in refused(capsys, recipe, "--output_dir", out)
    assert not out.exists()
