import numpy as np
from sklearn.datasets import load_digits as sklearn_digits

from hf_vaq.data import load_digits


def test_all_digits_are_there_once_and_the_split_is_stratified():
    digits = load_digits()
    assert {name: len(split) for name, split in digits.items()} == {"train": 1437, "test": 360}
    counts = np.bincount(digits["test"]["label"], minlength=10)
    expected = np.bincount(sklearn_digits().target) * 0.2
    assert np.abs(counts - expected).max() <= 1
    pictures = {np.asarray(image)[..., 0].tobytes() for split in digits.values() for image in split["image"]}
    assert len(pictures) == len({image.tobytes() for image in sklearn_digits().images})


def test_pictures_are_rgb_with_the_original_grey_levels():
    digits = load_digits()
    images = sklearn_digits().images
    originals = {
        image.astype(np.uint8).tobytes(): label for image, label in zip(images, sklearn_digits().target, strict=True)
    }
    for row in digits["test"].select(range(20)):
        assert row["image"].mode == "RGB" and row["image"].size == (8, 8)
        pixels = np.asarray(row["image"])
        assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
        levels = np.rint(pixels[..., 0] / 255 * 16).astype(np.uint8)
        assert originals[levels.tobytes()] == row["label"]


def test_the_split_is_the_same_every_time():
    np.random.seed(5)
    first = load_digits()["test"]["label"][:]
    np.random.seed(6)
    assert load_digits()["test"]["label"][:] == first
