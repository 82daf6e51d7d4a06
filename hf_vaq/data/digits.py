"""The bundled data set: scikit-learn's 1,797 handwritten digits, so that the main job runs without a network."""

import datasets
import numpy as np
from PIL import Image

TEST_SHARE = 0.2
_SPLIT_SEED = 0
_HIGHEST_GREY_LEVEL = 16


def load_digits() -> datasets.DatasetDict:
    """Return scikit-learn's handwritten digits as a `datasets.DatasetDict` with splits `train` and `test`.

    The source is the test part of "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository),
    which scikit-learn ships: 8x8 pictures with grey levels 0..16. Here each picture becomes an 8x8 RGB image with
    levels 0..255 (three equal channels, because image pipelines deliver RGB), column `image`; column `label` is a
    `ClassLabel` "0".."9".

    The split is stratified by digit and fixed: 1,437 training and 360 test pictures, the same in every run whatever
    the seed of a recipe, so that the accuracy of different seeds is measured on the same pictures.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits
    from sklearn.model_selection import train_test_split

    bunch = load_sklearn_digits()
    levels = np.rint(bunch.images * (255 / _HIGHEST_GREY_LEVEL)).astype(np.uint8)
    train_rows, test_rows = train_test_split(
        np.arange(len(levels)), test_size=TEST_SHARE, random_state=_SPLIT_SEED, stratify=bunch.target
    )
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )

    def split(rows: np.ndarray) -> datasets.Dataset:
        pictures = [Image.fromarray(levels[row]).convert("RGB") for row in rows]
        return datasets.Dataset.from_dict({"image": pictures, "label": bunch.target[rows]}, features=features)

    return datasets.DatasetDict(train=split(train_rows), test=split(test_rows))
