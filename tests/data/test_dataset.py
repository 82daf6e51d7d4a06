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


def training_set(rows: int = 6) -> ImageClassificationDataset:
    return ImageClassificationDataset(
        split_of([{"bytes": png(row), "path": None} for row in range(rows)]),
        np.arange(rows),
        training_transform(PROCESSOR, AUGMENTATION),
        image_column="picture",
    )


def pixels(dataset: ImageClassificationDataset, **loader) -> torch.Tensor:
    return torch.cat([batch["pixel_values"] for batch in DataLoader(dataset, batch_size=2, **loader)])


def test_items_are_what_the_trainer_expects():
    item = training_set()[3]
    assert item["pixel_values"].shape == (3, 8, 8) and item["pixel_values"].dtype == torch.float32
    assert item["labels"] == 3 and isinstance(item["labels"], int)


def test_random_transforms_draw_from_torchs_generator_only():
    dataset = training_set()
    torch.manual_seed(0)
    first = pixels(dataset)
    assert not torch.equal(pixels(dataset), first)
    np.random.seed(99)
    torch.manual_seed(0)
    assert torch.equal(pixels(dataset), first)


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
