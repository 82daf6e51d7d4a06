"""Crops: where they lie, that they depend on nothing but (seed, image, crop), and how they are cut."""

import numpy as np
import pytest
from PIL import Image

from hf_vaq.soft_labels import CropSampling, cut_crop, draw_crops

UNIT = 65535


def fractions(boxes):
    left, top, right, bottom = boxes.T / UNIT
    return left, top, right - left, bottom - top


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 400), (32, 32)])
def test_crops_have_the_share_and_the_ratio_that_were_asked_for(width, height):
    sampling = CropSampling(scale=(0.2, 0.7), ratio=(0.5, 1.5), seed=3)
    boxes, _ = draw_crops(sampling, 0, 4000, width, height)
    left, top, wide, high = fractions(boxes)
    rounding = 2 / UNIT
    area, ratio = wide * high, wide * width / (high * height)
    assert area.min() > 0.2 - rounding and area.max() < 0.7 + rounding
    assert ratio.min() > 0.5 - 1e-3 and ratio.max() < 1.5 + 1e-3
    assert (left + wide).max() <= 1 and (top + high).max() <= 1
    if width == height:
        # Nothing is rejected for being too wide or too high, or little: the area is uniform.
        assert np.percentile(area, [25, 50, 75]) == pytest.approx([0.325, 0.45, 0.575], abs=0.03)


def test_crops_are_distributed_as_those_of_torchvision():
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    width, height = 400, 300
    image = torch.zeros(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)])
    top, left, high, wide = theirs.T / [[height], [width], [height], [width]]
    ours = fractions(draw_crops(CropSampling(), 5, 4000, width, height)[0])
    for a, b in zip(ours, (left, top, wide, high), strict=True):
        assert np.percentile(a, [10, 50, 90]) == pytest.approx(np.percentile(b, [10, 50, 90]), abs=0.03)


def test_a_crop_does_not_depend_on_the_others():
    sampling = CropSampling(seed=7)
    boxes, flips = draw_crops(sampling, 3, 20, 50, 40)
    for first, count in ((0, 5), (4, 1), (13, 7)):
        some = draw_crops(sampling, 3, count, 50, 40, first=first)
        assert np.array_equal(some[0], boxes[first : first + count])
        assert np.array_equal(some[1], flips[first : first + count])


@pytest.mark.parametrize("other", [{"seed": 8}, {"image": 4}], ids=["seed", "image"])
def test_crops_of_another_seed_or_image_are_others(other):
    boxes = draw_crops(CropSampling(seed=7), 3, 20, 50, 40)[0]
    others = draw_crops(CropSampling(seed=other.get("seed", 7)), other.get("image", 3), 20, 50, 40)[0]
    assert not (boxes[:, None] == others[None]).all(-1).any()


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 0.26, 0.34), (1.0, 1, 1)])
def test_flips_have_their_probability(probability, low, high):
    flips = draw_crops(CropSampling(horizontal_flip=probability), 0, 4000, 10, 10)[1]
    assert low <= flips.mean() <= high


def test_an_image_too_long_for_any_crop_gets_its_centre():
    boxes, _ = draw_crops(CropSampling(scale=(0.9, 1.0)), 0, 3, 400, 100)
    left, top, wide, high = fractions(boxes)
    assert wide == pytest.approx([100 * 4 / 3 / 400] * 3, abs=1e-4)
    assert left == pytest.approx((1 - wide) / 2, abs=1e-4)
    assert top.tolist() == [0, 0, 0] and high.tolist() == [1, 1, 1]


def test_a_box_of_an_extremely_long_image_is_never_empty():
    boxes, _ = draw_crops(CropSampling(scale=(0.001, 0.001)), 0, 50, 4_000_000, 2)
    assert (boxes[:, 2] > boxes[:, 0]).all() and (boxes[:, 3] > boxes[:, 1]).all()


def test_the_whole_image_is_cut_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image, whole = Image.fromarray(pixels), np.array([0, 0, UNIT, UNIT], dtype=np.uint16)
    cut = cut_crop(image, whole, False, (7, 9), Image.Resampling.BICUBIC)
    assert cut.dtype == np.uint8 and np.array_equal(cut, pixels.transpose(2, 0, 1))
    flipped = cut_crop(image, whole, True, (7, 9), Image.Resampling.BICUBIC)
    assert np.array_equal(flipped, cut[:, :, ::-1])


def test_a_box_on_pixel_borders_cuts_these_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 15, 3), dtype=np.uint8)
    # 65535 = 15 * 17 * 257: thirds and fifths of 15, and every row of 17, are exact.
    box = np.array([3 * UNIT // 15, 2 * UNIT // 17, 10 * UNIT // 15, 12 * UNIT // 17], dtype=np.uint16)
    cut = cut_crop(Image.fromarray(pixels), box, False, (10, 7), Image.Resampling.BILINEAR)
    assert np.array_equal(cut, pixels[2:12, 3:10].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0, 1)}, "crop scale is"),
        ({"scale": (0.5, 0.4)}, "crop scale is"),
        ({"ratio": (0, 1)}, "crop ratio is"),
        ({"horizontal_flip": 1.5}, "horizontal_flip is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_sampling_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CropSampling(**fields)
