"""`hf-vaq label RECIPE`, and `hf-vaq train` of a recipe with stored soft labels."""

import json
from pathlib import Path

import pytest
import yaml
from soft_label_helpers import files_of, processor, teacher

from hf_vaq.cli import main
from hf_vaq.data import load_dataset
from hf_vaq.job.label import label_recipe
from hf_vaq.recipe import load_recipe
from hf_vaq.soft_labels import SoftLabelStore

DIGITS = {index: str(index) for index in range(10)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe beside its model, and the finished store that it names."""
    folder = tmp_path_factory.mktemp("recipe")
    model = teacher(10)
    model.config.id2label, model.config.label2id = DIGITS, {name: index for index, name in DIGITS.items()}
    model.save_pretrained(folder / "float")
    processor().save_pretrained(folder / "float")
    fields = {
        "model": str(folder / "float"),
        "dataset": "digits",
        "train_split": "train[:40]",
        "eval_split": "test[:20]",
        "soft_labels": str(folder / "labels"),
        "label_crops": 8,
        "label_top_k": 3,
        "label_crop_scale": 0.5,
        "label_horizontal_flip": 0,
        "label_batch_size": 16,
        "num_crops": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 20,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path = folder / "stored.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert main(["label", str(path)]) == 0
    return path


def test_label_writes_the_store_that_the_recipe_describes(recipe, capsys):
    labels = SoftLabelStore(recipe.parent / "labels")
    labels.verify()
    settings = labels.settings
    assert (len(labels), settings.crops_per_image, settings.top_k, settings.batch_size) == (40, 8, 3, 16)
    assert (settings.teacher, settings.dataset, settings.split) == ("float", "digits", "train[:40]")
    assert (settings.crop_scale, settings.horizontal_flip, settings.seed) == ((0.5, 1.0), 0, 0)
    assert settings.label_names == tuple(DIGITS.values())
    assert main(["label", str(recipe)]) == 0, "a finished store is left as it is"
    out = capsys.readouterr().out
    assert "top 3" in out and f"{labels.metadata.bytes_per_crop:.2f}" in out and str(labels.folder) in out


def test_label_shows_progress_with_an_estimate(recipe, tmp_path, capsys):
    assert main(["label", str(recipe), "--soft_labels", str(tmp_path / "s"), "--disable_tqdm", "false"]) == 0
    err = capsys.readouterr().err
    assert "labelling: 100%" in err and "320/320" in err and "crop/s" in err


def test_streaming_gives_the_same_labels(recipe, tmp_path):
    fields = ["--train_split", "train", "--label_images_per_shard", "700", "--label_crops", "1"]
    for name, more in (("a", []), ("b", ["--label_streaming"])):
        assert main(["label", str(recipe), "--soft_labels", str(tmp_path / name), *fields, *more]) == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(SoftLabelStore(tmp_path / "a").metadata.shards) == 3


def test_train_learns_from_the_store_without_its_teacher(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_vaq.training.trainer.build_teacher", None)
    out = tmp_path / "out"
    assert main(["train", str(recipe), "--output_dir", str(out), "--logging_steps", "1"]) == 0
    assert "soft labels of float, 8 crops an image" in capsys.readouterr().err
    assert json.loads((out / "results.json").read_text())["quantized"]["num_images"] == 20
    states = sorted(out.glob("checkpoint-*/trainer_state.json"))
    logged = [entry for entry in json.loads(states[-1].read_text())["log_history"] if "loss" in entry]
    assert len(logged) == 10, "two epochs of 40 crops, eight in a batch"
    assert all("distillation_loss" in entry and "hard_label_loss" not in entry for entry in logged)


def test_train_refuses_other_images_before_any_training(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "o"), "--train_split", "train[40:80]"]) == 1
    assert "do not belong to these images" in capsys.readouterr().err
    assert not (tmp_path / "o" / "trained").exists()


def test_train_refuses_a_store_with_other_classes_before_the_full_precision_phase(recipe, tmp_path, capsys):
    fields = yaml.safe_load(recipe.read_text())
    fields["model_config"] = {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16}
    fields["model_config"] |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    fields |= {"float_num_train_epochs": 1, "dataset": str(tmp_path / "data"), "eval_split": "train"}
    del fields["model"]
    fields["train_split"] = "train"
    from soft_label_helpers import photographs

    (tmp_path / "data").mkdir()
    photographs(40).to_parquet(str(tmp_path / "data" / "train.parquet"))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(fields))
    assert main(["train", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "o")]) == 1
    assert "have 10 classes, the model 3" in capsys.readouterr().err
    assert not (tmp_path / "o" / "float").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--soft_labels", "none"], "soft_labels is none; accepted: the folder to write"),
        (["--teacher", "none"], "teacher is None.*accepted: a trained model"),
        (["--label_crops", "4"], "holds another labelling: crops_per_image was 8, now it is 4"),
        (["--label_streaming"], "accepted with label_streaming: a whole split, train, test"),
        (["--train_split", "train", "--label_top_k", "11", "--soft_labels", "NEW"], "top_k is 11; accepted: 1 to 10"),
    ],
)
def test_label_refuses_what_it_cannot_do(recipe, tmp_path, overrides, message):
    overrides = [str(tmp_path / "new") if word == "NEW" else word for word in overrides]
    with pytest.raises(ValueError, match=message):
        label_recipe(load_recipe(recipe, overrides))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--rand_augment_magnitude", "9"], "rand_augment_magnitude is 9; accepted with soft_labels: 0"),
        (["--hard_label_weight", "0.5"], "hard_label_weight=0.5: expected 0 with soft_labels"),
        (["--num_train_epochs", "0"], "num_train_epochs is 0; accepted with soft_labels"),
        (["--label_dtype", "int8"], "label_dtype is 'int8'"),
        (["--label_crops", "0"], "label_crops is 0"),
        (["--label_crop_scale", "0"], "label_crop_scale is 0"),
        (["--label_horizontal_flip", "2"], "label_horizontal_flip is 2"),
        (["--label_seed", "-1"], "label_seed is -1"),
        (["--num_crops", "0"], "num_crops=0: expected an integer, 1 or more"),
        (["--soft_label_recovery", "half"], "soft_label_recovery='half': expected smoothing or renormalization"),
    ],
)
def test_fields_that_do_not_fit_are_refused_when_the_recipe_is_read(recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe, overrides)


def test_label_help_lists_its_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["label", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "hf-vaq label RECIPE" in out and "--label_crops" in out and "--soft_labels" in out


def test_a_finished_store_is_pushed_where_the_recipe_says(recipe, monkeypatch):
    pushed, checked = [], []
    monkeypatch.setattr("hf_vaq.hub.publishing.check_target", checked.append)
    monkeypatch.setattr(SoftLabelStore, "push_to_hub", lambda self, name, **fields: pushed.append((name, fields)))
    assert main(["label", str(recipe), "--label_hub_id", "me/labels", "--hub_token", "secret"]) == 0
    assert pushed == [("me/labels", {"token": "secret"})]
    (target,) = checked
    assert (target.repo_id, target.repo_type, target.token) == ("me/labels", "dataset", "secret")


def test_where_a_store_cannot_be_pushed_nothing_is_labelled(recipe, monkeypatch, capsys):
    def refuse(target):
        raise ValueError("there is no token for the Hub")

    monkeypatch.setattr("hf_vaq.hub.publishing.check_target", refuse)
    monkeypatch.setattr("hf_vaq.job.label.label_dataset", lambda *args, **kwargs: pytest.fail("labelled"))
    assert main(["label", str(recipe), "--label_hub_id", "me/labels"]) == 1
    assert "there is no token for the Hub" in capsys.readouterr().err


def test_a_finished_store_of_other_images_is_not_taken_for_these(recipe, monkeypatch, capsys):
    before = files_of(recipe.parent / "labels")
    images = load_dataset("digits")["train"]
    monkeypatch.setattr("hf_vaq.job.label._split", lambda recipe: images.select(range(1, 41)))
    assert main(["label", str(recipe)]) == 1
    assert "holds a labelling of other images: row 0" in capsys.readouterr().err
    assert files_of(recipe.parent / "labels") == before
