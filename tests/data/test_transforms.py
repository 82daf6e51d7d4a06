import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextImageProcessor, ViTConfig, ViTImageProcessor

from hf_vaq.data import Augmentation, check_input_format, evaluation_transform, input_format, training_transform

NO_AUGMENTATION = Augmentation(crop_scale=None, horizontal_flip=0)


def processor(size: int = 12) -> ViTImageProcessor:
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], resample=2
    )


def picture(seed: int = 0, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_without_augmentation_training_and_evaluation_give_the_same_tensor():
    image = picture()
    expected = (np.asarray(image, dtype=np.float32) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    for transform in (training_transform(processor(), NO_AUGMENTATION), evaluation_transform(processor())):
        torch.testing.assert_close(
            transform(image), torch.from_numpy(expected).permute(2, 0, 1).float(), atol=1e-5, rtol=0
        )


def test_a_mirror_image_is_the_only_effect_of_flipping():
    image = picture()
    flipped = training_transform(processor(), Augmentation(crop_scale=None, horizontal_flip=1))(image)
    plain = training_transform(processor(), NO_AUGMENTATION)(image)
    assert torch.equal(flipped, plain.flip(-1))


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_scale=0.3, horizontal_flip=0),
        Augmentation(crop_scale=None, horizontal_flip=0, affine_degrees=20),
        Augmentation(crop_scale=None, horizontal_flip=0, affine_translate=0.3),
        Augmentation(crop_scale=None, horizontal_flip=0, affine_zoom=0.4),
        Augmentation(crop_scale=None, horizontal_flip=0, rand_augment_magnitude=30),
        Augmentation(crop_scale=None, horizontal_flip=0, random_erasing=1),
    ],
)
def test_each_part_of_the_augmentation_varies_the_image_and_keeps_its_size(augmentation):
    transform = training_transform(processor(), augmentation)
    plain = training_transform(processor(), NO_AUGMENTATION)(picture())
    torch.manual_seed(0)
    results = [transform(picture()) for _ in range(8)]
    assert all(result.shape == (3, 12, 12) and result.dtype == torch.float32 for result in results)
    assert any(not torch.equal(result, plain) for result in results)
    assert any(not torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", 0),
        ("crop_scale", 1.5),
        ("horizontal_flip", -0.1),
        ("affine_degrees", 200),
        ("affine_translate", 2),
        ("affine_zoom", 1),
        ("rand_augment_magnitude", 31),
        ("random_erasing", 1.1),
    ],
)
def test_augmentation_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; accepted"):
        Augmentation(**{field: value})


def test_the_crop_of_a_processor_is_its_output_size():
    made = input_format(ConvNextImageProcessor(size={"shortest_edge": 384}))
    assert (made.height, made.width) == (384, 384)


def test_a_processor_without_a_size_is_refused():
    odd = processor()
    odd.size = None
    with pytest.raises(ValueError, match="has size None; accepted"):
        input_format(odd)


def test_another_image_size_than_the_models_is_refused():
    check_input_format(processor(12), ViTConfig(image_size=12))
    with pytest.raises(ValueError, match="images of 12 x 12 pixels, the model's image_size is 16 x 16"):
        check_input_format(processor(12), ViTConfig(image_size=16))


def test_a_model_with_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="num_channels is 1; accepted: 3"):
        check_input_format(processor(12), ViTConfig(image_size=12, num_channels=1))


def test_a_processor_with_another_number_of_channels_is_refused():
    grey = ViTImageProcessor(size={"height": 12, "width": 12}, image_mean=[0.5], image_std=[0.5])
    with pytest.raises(ValueError, match="image_mean has 1 values; the model takes 3"):
        check_input_format(grey, ViTConfig(image_size=12))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", [0.5, float("nan"), 0.5]),
        ("image_std", [0.5, -1.0, 0.5]),
        ("image_std", None),
        ("image_mean", [0.5, float("inf"), 0.5]),
        ("image_mean", ["0.5", 0.5, 0.5]),
        ("rescale_factor", 0.0),
        ("rescale_factor", float("nan")),
    ],
)
def test_a_processor_that_makes_no_finite_pixels_is_refused(field, value):
    damaged = processor(12)
    setattr(damaged, field, value)
    with pytest.raises(ValueError, match=rf"{field} is .*, expected "):
        check_input_format(damaged, ViTConfig(image_size=12))
