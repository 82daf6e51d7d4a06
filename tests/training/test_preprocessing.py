"""The student's pixel values become those the teacher's own image processor would make."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ViTImageProcessor,
)

from hf_vaq.training import PixelConversion, measure_normalization

SIDE = 32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
STUDENT = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
SAME_SIZE = [
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}),
    ViTImageProcessor(do_resize=False, do_normalize=False),
    BitImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
    ConvNextImageProcessor(do_resize=False),
    EfficientNetImageProcessor(size={"height": SIDE, "width": SIDE}),  # divides by the deviation twice
    MobileViTImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),  # blue first
]


def picture(channels=3):
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)


def pixels(processor, image):
    return processor(images=[image], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("teacher", SAME_SIZE, ids=lambda processor: type(processor).__name__)
def test_conversion_equals_the_teachers_own_processing(teacher):
    conversion = PixelConversion(measure_normalization(STUDENT), measure_normalization(teacher), size=None)
    converted = conversion(pixels(STUDENT, picture()))
    torch.testing.assert_close(converted, pixels(teacher, picture()).float(), rtol=0, atol=2e-5)


def test_equal_processing_leaves_the_tensor_untouched():
    have, want = measure_normalization(STUDENT), measure_normalization(ViTImageProcessor(**STUDENT.to_dict()))
    pixel_values = torch.randn(2, 3, SIDE, SIDE)
    assert PixelConversion(have, want, (SIDE, SIDE))(pixel_values) is pixel_values


def test_another_size_is_an_antialiased_bilinear_resize_of_the_raw_picture():
    teacher = ViTImageProcessor(size={"height": 12, "width": 12})
    want = measure_normalization(teacher)
    assert want.size == (12, 12)
    converted = PixelConversion(measure_normalization(STUDENT), want, want.size)(pixels(STUDENT, picture()))
    raw = torch.from_numpy(picture()).permute(2, 0, 1)[None] / 255
    small = F.interpolate(raw, (12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(converted, (small - 0.5) / 0.5, rtol=0, atol=2e-5)


def test_grey_pictures():
    student = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.3], image_std=[0.2])
    teacher = ViTImageProcessor(do_resize=False, image_mean=[0.5], image_std=[0.25])
    conversion = PixelConversion(measure_normalization(student, 1), measure_normalization(teacher, 1), size=None)
    converted = conversion(pixels(student, picture(1)))
    torch.testing.assert_close(converted, pixels(teacher, picture(1)), rtol=0, atol=2e-5)


def test_the_size_is_unknown_where_the_processor_keeps_that_of_the_picture():
    assert measure_normalization(ViTImageProcessor(do_resize=False)).size is None


def test_a_processor_that_does_more_than_normalise_is_refused():
    class Squares(ViTImageProcessor):
        def __call__(self, *args, **kwargs):
            output = super().__call__(*args, **kwargs)
            output["pixel_values"] = output["pixel_values"] ** 2
            return output

    with pytest.raises(ValueError, match="Squares does not map each of 3 channels by a scale and an offset"):
        measure_normalization(Squares(do_resize=False))
