"""A dataset that does not fit the model is refused before anything is trained."""

import datasets
import numpy as np
import pytest
import torch
from training_helpers import Images, arguments, tiny_vit
from transformers import SwinConfig, default_data_collator

from hf_vaq.training import VaqTrainer
from hf_vaq.training.checks import check_dataset


def examples(**fields):
    return [{"pixel_values": torch.zeros(3, 8, 8), "labels": 0} | fields]


def without(field):
    return [{key: value for key, value in examples()[0].items() if key != field}]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (without("pixel_values"), r"has no field 'pixel_values' \(its examples have \['labels'\]\)"),
        (without("labels"), r"has no field 'labels' or 'label' \(its examples have \['pixel_values'\]\)"),
        (examples(pixel_values=torch.zeros(1, 8, 8)), "have 1 channels, expected 3"),
        (examples(pixel_values=torch.zeros(3, 8, 9)), "are 8 x 9 .*, expected 8 x 8"),
        (examples(pixel_values=torch.zeros(8, 8)), r"shape \(8, 8\): expected .* \(channels, height, width\)"),
        (examples(pixel_values=torch.zeros(3, 8, 8, dtype=torch.uint8)), "type torch.uint8"),
        (examples(labels=3), "label 3: expected 0 to 2"),
        (examples(labels=-1), "label -1: expected 0 to 2"),
        (examples(labels=0.5), "labels of a batch are torch.float32"),
        ([], "is empty: expected at least one example"),
    ],
)
def test_the_field_its_value_and_what_is_accepted_are_named(tmp_path, dataset, message):
    with pytest.raises(ValueError, match=f"train_dataset.*{message}"):
        VaqTrainer(tiny_vit(), arguments(tmp_path), train_dataset=dataset).train()
    good = Images()
    with pytest.raises(ValueError, match=f"eval_dataset.*{message}"):
        VaqTrainer(tiny_vit(), arguments(tmp_path), train_dataset=good, eval_dataset=dataset).train()


def test_one_of_several_evaluation_sets_is_named(tmp_path):
    parts = {"good": Images(), "bad": Images(size=16)}
    with pytest.raises(ValueError, match=r"eval_dataset\['bad'\].*16 x 16"):
        VaqTrainer(tiny_vit(), arguments(tmp_path), train_dataset=Images(), eval_dataset=parts).train()


def test_families_that_take_any_size_are_not_held_to_the_configured_one():
    config = SwinConfig(image_size=32, num_labels=3)
    pixel_values = check_dataset(Images(size=8), default_data_collator, config, "train_dataset")
    assert pixel_values.shape == (1, 3, 8, 8)


def test_an_iterable_dataset_is_checked_too():
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, items):
            self.items = items

        def __iter__(self):
            return iter(self.items)

    check_dataset(Stream(examples()), default_data_collator, tiny_vit().config, "train_dataset")
    with pytest.raises(ValueError, match="train_dataset is empty"):
        check_dataset(Stream([]), default_data_collator, tiny_vit().config, "train_dataset")


def test_a_transform_may_read_columns_that_the_model_does_not_take(tmp_path):
    def transform(batch):
        images = [torch.from_numpy(np.array(image)).float().reshape(3, 8, 8) for image in batch["picture"]]
        return {"pixel_values": images, "label": batch["label"]}

    rows = {"picture": [np.full(192, i / 8.0).tolist() for i in range(8)], "label": [i % 3 for i in range(8)]}
    dataset = datasets.Dataset.from_dict(rows).with_transform(transform)
    trainer = VaqTrainer(tiny_vit(), arguments(tmp_path, max_steps=1), train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_columns_that_nobody_reads_are_dropped(tmp_path):
    rows = {"pixel_values": np.zeros((8, 3, 8, 8), np.float32), "labels": [i % 3 for i in range(8)], "file": ["x"] * 8}
    dataset = datasets.Dataset.from_dict(rows).with_format("torch")
    result = VaqTrainer(tiny_vit(), arguments(tmp_path, max_steps=2), train_dataset=dataset).train()
    assert result.global_step == 2
