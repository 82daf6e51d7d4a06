import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from hf_vaq.data import (
    Augmentation,
    ImageClassificationDataset,
    ImageDecodeError,
    SetEpochCallback,
    evaluation_transform,
    training_transform,
)

PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8})
AUGMENTATION = Augmentation(crop_scale=0.3, affine_degrees=10)


def png(seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def split_of(images: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"picture": images}, features=datasets.Features({"picture": datasets.Image()}))


def training_set(seed: int = 0, rows: int = 6) -> ImageClassificationDataset:
    return ImageClassificationDataset(
        split_of([{"bytes": png(row), "path": None} for row in range(rows)]),
        np.arange(rows),
        training_transform(PROCESSOR, AUGMENTATION),
        image_column="picture",
        seed=seed,
    )


def pixels(dataset: ImageClassificationDataset, **loader) -> torch.Tensor:
    return torch.cat([batch["pixel_values"] for batch in DataLoader(dataset, batch_size=2, **loader)])


def test_items_are_what_the_trainer_expects():
    item = training_set()[3]
    assert item["pixel_values"].shape == (3, 8, 8) and item["pixel_values"].dtype == torch.float32
    assert item["labels"] == 3 and isinstance(item["labels"], int)


def test_the_augmentation_depends_on_seed_epoch_and_index_only():
    dataset = training_set()
    first = pixels(dataset)
    torch.manual_seed(99)
    assert torch.equal(dataset[4]["pixel_values"], first[4])
    assert torch.equal(pixels(training_set()), first)
    assert not torch.equal(pixels(training_set(seed=1)), first)
    dataset.set_epoch(1)
    assert dataset.epoch == 1
    second = pixels(dataset)
    assert all(not torch.equal(now, before) for now, before in zip(second, first, strict=True))
    dataset.set_epoch(0)
    assert torch.equal(pixels(dataset), first)


def test_equal_images_are_augmented_differently_in_one_epoch():
    same = split_of([{"bytes": png(0), "path": None}] * 2)
    transform = training_transform(PROCESSOR, AUGMENTATION)
    dataset = ImageClassificationDataset(same, np.zeros(2), transform, image_column="picture", seed=0)
    assert not torch.equal(dataset[0]["pixel_values"], dataset[1]["pixel_values"])


def test_reading_an_item_leaves_the_global_generator_alone():
    dataset = training_set()
    before = torch.get_rng_state()
    dataset[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_give_the_same_and_persistent_ones_follow_the_epoch():
    dataset = training_set()
    expected = {}
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected[epoch] = pixels(dataset)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected[epoch])


def test_the_callback_sets_the_epoch_at_its_start_and_when_resumed_within_it():
    class State:
        epoch = 2.4

    dataset = training_set()
    SetEpochCallback().on_epoch_begin(None, State(), None, train_dataloader=DataLoader(dataset))
    assert dataset.epoch == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_mode_become_rgb(mode):
    dataset = ImageClassificationDataset(
        split_of([{"bytes": png(0, mode), "path": None}]),
        np.zeros(1),
        evaluation_transform(PROCESSOR),
        image_column="picture",
    )
    assert dataset[0]["pixel_values"].shape == (3, 8, 8)


def test_a_truncated_image_names_column_row_and_file(tmp_path):
    (tmp_path / "broken.png").write_bytes(png(1)[:-60])
    good, cut = {"bytes": png(0), "path": None}, {"bytes": png(1)[:-60], "path": None}
    on_disk = {"bytes": None, "path": str(tmp_path / "broken.png")}
    dataset = ImageClassificationDataset(
        split_of([good, cut, on_disk]), np.zeros(3), evaluation_transform(PROCESSOR), image_column="picture"
    )
    dataset[0]
    with pytest.raises(ImageDecodeError, match="column 'picture', row 1 cannot be read"):
        dataset[1]
    with pytest.raises(ImageDecodeError, match=r"column 'picture', row 2 \(file .*broken\.png\) cannot be read"):
        dataset[2]
    with pytest.raises(ImageDecodeError, match="row 1 cannot be read"):
        pixels(dataset, num_workers=1)


def test_what_is_no_image_and_what_is_missing_name_their_row():
    dataset = ImageClassificationDataset(
        split_of([{"bytes": b"no image", "path": None}, None]),
        np.zeros(2),
        evaluation_transform(PROCESSOR),
        image_column="picture",
    )
    with pytest.raises(ImageDecodeError, match="row 0 cannot be read"):
        dataset[0]
    with pytest.raises(ImageDecodeError, match="There is no image in column 'picture', row 1"):
        dataset[1]


def test_labels_and_rows_must_agree():
    with pytest.raises(ValueError, match="labels has 2 entries, the split 1 rows"):
        ImageClassificationDataset(
            split_of([None]), np.zeros(2), evaluation_transform(PROCESSOR), image_column="picture"
        )
