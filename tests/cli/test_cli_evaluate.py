"""`hf-vaq evaluate`: every form of a model, several side by side, stored and streamed images, bad input."""

import json
import shutil

import datasets
import numpy as np
import pytest
from transformers import AutoModelForImageClassification

from hf_vaq.cli import main
from hf_vaq.data import load_digits
from hf_vaq.evaluation import eval_results


def evaluate(tmp_path, *arguments) -> dict:
    output = tmp_path / "deep" / "result.json"
    assert main(["evaluate", *map(str, arguments), "--device", "cpu", "--output", str(output)]) == 0
    return json.loads(output.read_text())


@pytest.fixture
def digits_parquet(tmp_path) -> str:
    """The first 40 test digits, in a Parquet file with two row groups."""
    path = tmp_path / "data" / "test.parquet"
    path.parent.mkdir()
    load_digits()["test"].select(range(40)).to_parquet(path, batch_size=20)
    return str(path.parent)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", ["float", "trained", "packed"])
def test_every_form_is_measured(tiny_run, form, tmp_path, capsys):
    report = evaluate(tmp_path, tiny_run.folder / form, "--dataset", "digits", "--split", "test[:40]")
    (result,) = report["models"]
    expected = tiny_run.results["full_precision" if form == "float" else "quantized"]
    assert (result["top1"], result["top5"]) == (expected["top1"], expected["top5"])
    assert result["images_per_second"] > 0 and report["data"]["split"] == "test[:40]"
    assert result["size_bytes"] == (tiny_run.folder / form / "model.safetensors").stat().st_size
    assert result["top1_interval"][0] <= result["top1"] <= result["top1_interval"][1]
    expected_form = {"float": "full precision", "trained": "W2A2, training form", "packed": "W2A2, packed"}[form]
    assert result["form"] == expected_form and "difference" not in result
    table = capsys.readouterr().out
    assert f"{result['top1']:.2f} %" in table and "images/s" in table and expected_form in table


def test_execution_is_what_the_model_says_or_its_type(tiny_run, tmp_path):
    command = [tiny_run.folder / "float", tiny_run.folder / "packed", "--dataset", "digits", "--split", "test[:8]"]
    float_model, packed = evaluate(tmp_path, *command)["models"]
    assert float_model["execution"] == "float32"
    model = AutoModelForImageClassification.from_pretrained(tiny_run.folder / "packed")
    assert packed["execution"] == str(getattr(model, "execution", "float32"))


def test_models_side_by_side_give_what_each_gives_alone(tiny_run, tmp_path, capsys):
    forms = [tiny_run.folder / form for form in ("float", "packed", "trained")]
    data = ["--dataset", "digits", "--split", "test[:60]", "--batch-size", "7"]
    alone = [evaluate(tmp_path, form, *data)["models"][0] for form in forms]
    capsys.readouterr()
    together = evaluate(tmp_path, *forms, *data)["models"]
    for one, other in zip(alone, together, strict=True):
        for key in ("top1", "top1_interval", "top5", "top5_interval", "size_bytes", "form"):
            assert one[key] == other[key]
    for model in together[1:]:
        difference = model["difference"]
        assert difference["to"] == str(forms[0])
        assert difference["top1"] == pytest.approx(model["top1"] - alone[0]["top1"], abs=1e-3)
        assert difference["top1_interval"][0] <= difference["top1"] <= difference["top1_interval"][1]
    assert f"points of top-1 to {forms[0]}, on the same images" in capsys.readouterr().out


def test_models_with_other_classes_and_another_size_stand_side_by_side(tiny_run, tmp_path):
    from helpers import build
    from transformers import ViTImageProcessor

    names = {index: str(9 - index) for index in range(10)} | {10: "none"}
    other = build(image_size=32, num_labels=11, id2label=names, label2id={name: i for i, name in names.items()})
    other.save_pretrained(tmp_path / "other")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "other")
    command = [tiny_run.folder / "float", tmp_path / "other", "--dataset", "digits", "--split", "test[:40]"]
    together = evaluate(tmp_path, *command)["models"]
    (alone,) = evaluate(tmp_path, command[1], *command[2:])["models"]
    assert together[1]["top1"] == alone["top1"] and together[1]["top5"] == alone["top5"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_data_set_gives_what_the_stored_one_gives(tiny_run, tmp_path, digits_parquet, workers):
    command = [tiny_run.folder / "packed", tiny_run.folder / "float", "--dataset", digits_parquet]
    stored = evaluate(tmp_path, *command)
    streamed = evaluate(tmp_path, *command, "--streaming", "--num_workers", workers)
    assert streamed["data"]["streaming"] and not stored["data"]["streaming"]
    for one, other in zip(stored["models"], streamed["models"], strict=True):
        assert (one["top1"], one["top5"], one["top1_interval"]) == (
            other["top1"],
            other["top5"],
            other["top1_interval"],
        )
    assert stored["models"][0]["top1"] == tiny_run.results["quantized"]["top1"]


def test_max_images_takes_the_first_of_a_stream_and_chooses_at_random_otherwise(tiny_run, tmp_path):
    command = [tiny_run.folder / "float", "--dataset", "digits", "--max_images", "30"]
    streamed = evaluate(tmp_path, *command, "--streaming")
    first = evaluate(tmp_path, command[0], "--dataset", "digits", "--split", "test[:30]")
    assert streamed["models"][0]["top1"] == first["models"][0]["top1"]
    chosen = [evaluate(tmp_path, *command, "--seed", seed)["models"][0]["top1"] for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 1
    assert streamed["data"]["num_images"] == 30


def test_the_held_out_split_is_taken_by_itself(tiny_run, capsys):
    assert main(["evaluate", str(tiny_run.folder / "packed"), "--dataset", "digits", "--device", "cpu"]) == 0
    assert "\n360 images of digits, split test, of 10 classes\n" in capsys.readouterr().out


def test_the_result_goes_into_a_card(tiny_run, tmp_path):
    report = evaluate(tmp_path, tiny_run.folder / "packed", "--dataset", "digits", "--split", "test[:40]")
    top1, top5 = eval_results(report)
    assert top1.metric_value == pytest.approx(tiny_run.results["quantized"]["top1"] / 100)
    assert top5.metric_value == pytest.approx(tiny_run.results["quantized"]["top5"] / 100)
    assert (top1.dataset_type, top1.dataset_split) == ("digits", "test[:40]")


def test_what_is_needed_to_repeat_it_is_written_down(tiny_run, tmp_path):
    command = [tiny_run.folder / "packed", "--dataset", "digits", "--max_images", "20", "--seed", "5"]
    report = evaluate(tmp_path, *command, "--resamples", "500", "--confidence_level", "0.9")
    assert report["command"].startswith(f"hf-vaq evaluate {tiny_run.folder / 'packed'} --dataset digits --max_images")
    assert report["bootstrap"] == {
        "method": "percentile, paired",
        "confidence_level": 0.9,
        "resamples": 500,
        "seed": 5,
    }
    assert report["data"]["max_images"] == 20 and report["data"]["seed"] == 5
    assert report["settings"] == {"device": "cpu", "batch_size": 32, "num_workers": 0}
    assert report["machine"]["packages"]["hf-vaq"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits", "--image_column", "img"], "image_column is 'img'"),
        (["--dataset", "digits", "--split", "valid"], "split is 'valid'; the data set has: train, test"),
        (["--dataset", "digits", "--split", "test[:0]"], "split 'test[:0]' is empty"),
        (["--dataset", "digits", "--split", "test[:9]", "--streaming"], "accepted of a stream: a whole split"),
        (["--dataset", "./absent"], "no such folder or file"),
        (["--dataset", "digits", "--batch_size", "0"], "batch_size is 0"),
        (["--dataset", "digits", "--max_images", "0"], "max_images is 0"),
        (["--dataset", "digits", "--resamples", "0"], "resamples is 0"),
        (["--dataset", "digits", "--confidence_level", "95"], "confidence_level is 95.0"),
        (["--dataset", "digits", "--seed", "-1"], "seed is -1"),
        (["--dataset", "digits", "--output", "."], "output is '.', which is a folder"),
    ],
)
def test_bad_input_is_refused_with_one_line_before_any_image(tiny_run, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("hf_vaq.data.dataset.decode_image", lambda *args: pytest.fail("read an image"))
    assert main(["evaluate", str(tiny_run.folder / "packed"), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


def test_a_model_without_image_processor_is_refused(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run.folder / "packed", tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    assert main(["evaluate", str(tmp_path / "model"), "--dataset", "digits"]) == 1
    assert "has no image processor" in capsys.readouterr().err


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_labels_that_the_model_does_not_know_are_refused_before_any_image_is_read(
    tiny_run, tmp_path, capsys, monkeypatch, streaming
):
    data = load_digits()["test"].select(range(4))
    data = data.cast_column("label", datasets.ClassLabel(names=[f"digit {i}" for i in range(10)]))
    datasets.DatasetDict(test=data).save_to_disk(tmp_path / "data")
    monkeypatch.setattr(
        "hf_vaq.data.side_by_side.decode_image", lambda *args: pytest.fail("read an image before the labels")
    )
    command = ["evaluate", str(tiny_run.folder / "float"), "--dataset", str(tmp_path / "data"), *streaming]
    assert main(command) == 1
    assert "labels that the model does not know: 'digit 0'" in capsys.readouterr().err


def test_revisions_are_handed_to_the_hub_by_model(tiny_run, tmp_path, monkeypatch):
    from hf_vaq.job import models

    asked = []

    def load(kind, loader):
        def stand_in(name, **kwargs):
            asked.append((kind, name, kwargs))
            return loader(tiny_run.folder / "float")

        return stand_in

    monkeypatch.setattr(models, "load_model", load("model", models.load_model))
    monkeypatch.setattr(models, "load_image_processor", load("processor", models.load_image_processor))
    data = ["--dataset", "digits", "--split", "test[:4]"]
    evaluate(tmp_path, "me/model", *data, "--revision", "v1")
    evaluate(tmp_path, "me/model@v1", "me/model@v2", "me/other", *data)
    assert asked == [
        (kind, name, options)
        for name, options in (
            ("me/model", {"revision": "v1"}),
            ("me/model", {"revision": "v1"}),
            ("me/model", {"revision": "v2"}),
            ("me/other", {}),
        )
        for kind in ("model", "processor")
    ]


@pytest.mark.parametrize("models", [["me/a", "me/b"], ["me/a@v1"]])
def test_a_revision_that_could_be_of_another_model_is_refused(models, capsys):
    assert main(["evaluate", *models, "--dataset", "digits", "--revision", "v2"]) == 1
    assert "revision is 'v2'" in capsys.readouterr().err


def test_a_folder_with_an_at_sign_has_no_revision(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder / "float", tmp_path / "model@best")
    report = evaluate(tmp_path, tmp_path / "model@best", "--dataset", "digits", "--split", "test[:4]")
    assert report["models"][0]["revision"] is None


def test_the_intervals_repeat_with_the_seed(tiny_run, tmp_path):
    command = [tiny_run.folder / "float", tiny_run.folder / "packed", "--dataset", "digits", "--split", "test[:50]"]
    first, again, other = (
        evaluate(tmp_path, *command, "--resamples", "40", "--seed", seed)["models"][1] for seed in (0, 0, 1)
    )
    assert first["difference"] == again["difference"] and first["top1_interval"] == again["top1_interval"]
    assert not np.array_equal(
        [first["difference"]["top1_interval"], first["top1_interval"]],
        [other["difference"]["top1_interval"], other["top1_interval"]],
    )
