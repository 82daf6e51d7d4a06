"""What a resumed run may change, and how inputs are recognised."""

import datasets
import numpy as np
import pytest
import yaml
from helpers import TINY_RECIPE
from PIL import Image

from hf_vaq.data import LabelledSplit
from hf_vaq.job.inputs import SAMPLED_IMAGES, describe_images, describe_model
from hf_vaq.job.run_files import RunRecord
from hf_vaq.job.same_run import MAY_CHANGE, check_same_inputs, check_same_recipe, deciding_fields, images_in_a_step
from hf_vaq.recipe import load_recipe
from hf_vaq.recipe.parsing import field_types


def write_recipe(folder, **values):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY_RECIPE, **values}))
    return path


@pytest.fixture
def record(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    return RunRecord(tmp_path, deciding_fields(recipe), {"training images": "64 rows, hash a"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", "7", "seed was 42 and is 7"),
        ("weight_bits", "3", "weight_bits was 2 and is 3"),
        ("train_split", "train[100:148]", r"train_split was 'train\[:64\]' and is 'train\[100:148\]'"),
        ("teacher", "none", "teacher was 'self' and is None"),
        ("lr_scheduler_type", "cosine", "lr_scheduler_type was 'linear' and is 'cosine'"),
        ("learning_rate", "1e-3", "learning_rate was 0.0005 and is 0.001"),
        ("num_train_epochs", "1", "num_train_epochs was 2.0 and is 1.0"),
        ("max_steps", "3", "max_steps was -1 and is 3"),
        ("float_num_train_epochs", "2", "float_num_train_epochs was 1.0 and is 2.0"),
        ("image_std", "0.4 0.4 0.4", r"image_std was \[0.5, 0.5, 0.5\] and is \[0.4, 0.4, 0.4\]"),
        ("bf16", "true", "bf16 was False and is True"),
    ],
)
def test_what_decides_the_training_may_not_change(record, tmp_path, name, value, message):
    with pytest.raises(ValueError, match=rf"was made of something else: {message}\. Resume it as it was"):
        check_same_recipe(record, load_recipe(write_recipe(tmp_path), [f"--{name}", *value.split()]))


def test_every_change_is_named_at_once(record, tmp_path):
    with pytest.raises(ValueError, match=r"activation_bits was 2 and is 3; seed was 42 and is 1\."):
        check_same_recipe(record, load_recipe(write_recipe(tmp_path), ["--seed", "1", "--activation_bits", "3"]))


def test_logging_workers_and_devices_may_change_and_defaults_may_be_spelt_out(record, tmp_path):
    overrides = "--logging_steps 3 --dataloader_num_workers 1 --use_cpu true --save_steps 7 --output_dir x --seed 42"
    assert check_same_recipe(record, load_recipe(write_recipe(tmp_path), overrides.split())) == []


def test_more_epochs_are_a_warning(record, tmp_path):
    (line,) = check_same_recipe(record, load_recipe(write_recipe(tmp_path), ["--num_train_epochs", "5"]))
    assert line.startswith("warning: num_train_epochs was 2 and is 5")


def test_what_may_change_are_fields_and_never_those_of_model_data_or_quantization():
    assert set(field_types()) >= MAY_CHANGE
    decides = "model teacher dataset seed data_seed learning_rate weight_bits train_split soft_labels optim bf16"
    assert not MAY_CHANGE & set(decides.split())


def test_a_secret_is_not_kept(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, hub_token="secret"))
    assert "hub_token" not in deciding_fields(recipe) and "secret" not in recipe.to_yaml()


def test_images_in_a_step_count_accumulation(tmp_path):
    overrides = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
    first, second = load_recipe(write_recipe(tmp_path)), load_recipe(write_recipe(tmp_path), overrides)
    assert images_in_a_step(first.training) == images_in_a_step(second.training) == 16


def test_other_inputs_are_named(record):
    check_same_inputs(record, {"training images": "64 rows, hash a"})
    with pytest.raises(ValueError, match="training images: 64 rows, hash a then, 64 rows, hash b now"):
        check_same_inputs(record, {"training images": "64 rows, hash b"})
    with pytest.raises(ValueError, match="teacher: None then, hash c now"):
        check_same_inputs(record, {"training images": "64 rows, hash a", "teacher": "hash c"})


def split(number=70, *, level=0, label=0, names=("a", "b")):
    pixels = np.zeros((number, 2, 2, 3), dtype=np.uint8)
    pixels[0] = level
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": [0] * (number - 1) + [label]}
    return LabelledSplit(datasets.Dataset.from_dict(rows, features=features), "train", "image", "label")


def test_images_are_recognised_by_number_labels_names_and_bytes():
    first = describe_images(split())
    assert first == describe_images(split()) and first.startswith("70 rows, hash ")
    assert SAMPLED_IMAGES < 70, "labels count in every row, images in some"
    others = [split(71), split(level=1), split(label=1), split(names=("a", "c"))]
    assert len({first, *map(describe_images, others)}) == 5


def test_a_model_folder_is_recognised_by_its_content_wherever_it_lies(tmp_path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (describe_model(tmp_path / name) for name in "abc")
    assert a == b != c
