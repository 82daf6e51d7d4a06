"""Recipes that train on a stream of images."""

import itertools
import re

import datasets
import pytest
import torch
import yaml
from helpers import TINY_RECIPE, build
from safetensors.torch import load_file
from transformers import ViTImageProcessor

from hf_vaq.cli import main
from hf_vaq.data import load_digits
from hf_vaq.recipe import load_recipe
from hf_vaq.training.streaming import TrainingStream

NOT_FOR_STREAMS = ("model_config", "train_split", "eval_split", "float_num_train_epochs", "num_train_epochs")


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    """Go on at once after each pass. `datasets` waits 5 seconds then, lest the process ends before Arrow's threads."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def recipe(tmp_path):
    """Streams a Parquet folder of 40 training images; a full-precision model lies beside it."""
    digits = load_digits()
    for split, name in (("train", "train"), ("test", "test")):
        digits[split].select(range(40)).to_parquet(tmp_path / "data" / f"{name}.parquet")
    names = dict(enumerate(digits["train"].features["label"].names))
    size = {"hidden_size": 16, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
    model = build("vit", id2label=names, label2id={name: i for i, name in names.items()}, num_labels=10, **size)
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    values = {key: value for key, value in TINY_RECIPE.items() if key not in NOT_FOR_STREAMS}
    values |= {"model": str(tmp_path / "model"), "dataset": str(tmp_path / "data"), "dataset_streaming": True}
    values |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "crop_scale": 0.5, "shuffle_buffer": 16}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_trains_on_a_stream_and_resumes_bit_for_bit(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "whole")]) == 0
    assert "a stream of training and 40 held-out images, 10 classes" in capsys.readouterr().err
    # 16 images a step: the second pass over the 40 begins within the third step, the third within the sixth.
    resume = ["--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-4")]
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "resumed"), *resume]) == 0
    expected, found = (load_file(tmp_path / name / "trained" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(expected[name].equal(found[name]) for name in expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--max_steps", "-1"], "max_steps is -1; accepted with dataset_streaming: above 0"),
        (["--shuffle_buffer", "0"], "shuffle_buffer is 0; accepted: 1 and above"),
        (["--soft_labels", "somewhere"], "soft_labels are given with dataset_streaming"),
        (["--train_split", "train[:10]"], "train\\[:10\\]"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(recipe, tmp_path, capsys, fields, message):
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "out"), *fields]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_new_model_needs_images_that_can_be_counted():
    fields = {**TINY_RECIPE, "dataset_streaming": True, "max_steps": 3}
    words = [word for key, value in fields.items() for word in (f"--{key}", yaml.safe_dump(value).split("\n...")[0])]
    with pytest.raises(ValueError, match="model_config is given; accepted with dataset_streaming"):
        load_recipe("digits/vit_w2a2", words)


def test_every_pass_has_all_images_in_another_order_and_varied_anew():
    rows = load_digits()["train"].select(range(12))
    stream = TrainingStream(
        datasets.IterableDataset.from_generator(lambda: iter(rows), features=rows.features),
        lambda value, row: value,
        lambda image: torch.rand(1) + 0 * torch.tensor(image.getpixel((0, 0))[0]),
        image_column="image",
        label_column="label",
        seed=3,
        buffer_size=5,
    )
    first, again = (list(itertools.islice(iter(stream), 24)) for _ in range(2))
    assert [example["pixel_values"] for example in first] == [example["pixel_values"] for example in again]
    labels = [example["labels"] for example in first]
    assert sorted(labels[:12]) == sorted(labels[12:]) == sorted(rows["label"])
    assert labels[:12] != labels[12:]
    assert len({float(example["pixel_values"]) for example in first}) == 24
