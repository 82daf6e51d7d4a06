"""From a PIL image to the model's input: random augmentation for training, the image processor for evaluation."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from .processors import check_image_processor

ImageTransform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class InputFormat:
    """What a model's image processor makes of an image.

    `height` and `width` in pixels; `mean` and `std` per channel, of values in 0..1 (None: not normalised); `resample`
    is the PIL resampling code (2 bilinear, 3 bicubic).
    """

    height: int
    width: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resample: int


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied. Probabilities and shares lie in 0..1; 0 or None switches a part off.

    Attributes:
        crop_scale: smallest share of the image's area that a random resized crop keeps (the largest is 1); None
            resizes the whole image instead.
        horizontal_flip: probability of a mirror image.
        affine_degrees: largest rotation and shear, in degrees.
        affine_translate: largest shift, as a share of the image's side.
        affine_zoom: largest relative change of size: 0.1 scales by 0.9 to 1.1.
        rand_augment_magnitude: magnitude (1 to 30) of RandAugment with two operations an image; 0 switches it off.
        random_erasing: probability that a random rectangle is blanked.
    """

    crop_scale: float | None = 0.25
    horizontal_flip: float = 0.5
    affine_degrees: float = 0.0
    affine_translate: float = 0.0
    affine_zoom: float = 0.0
    rand_augment_magnitude: int = 0
    random_erasing: float = 0.0

    def __post_init__(self):
        if self.crop_scale is not None and not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale!r}; accepted: above 0 and at most 1, or none.")
        for name in ("horizontal_flip", "affine_translate", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 to 1.")
        if not 0 <= self.affine_zoom < 1:
            raise ValueError(f"affine_zoom is {self.affine_zoom!r}; accepted: 0 to below 1.")
        if not 0 <= self.affine_degrees <= 180:
            raise ValueError(f"affine_degrees is {self.affine_degrees!r}; accepted: 0 to 180.")
        if not 0 <= self.rand_augment_magnitude <= 30:
            raise ValueError(f"rand_augment_magnitude is {self.rand_augment_magnitude!r}; accepted: 0 (off) to 30.")


def input_format(image_processor: Any) -> InputFormat:
    """Read size, normalisation and resampling from a transformers image processor.

    Raises:
        ValueError: the processor states no size, so no training crop can be made for it; or its settings make no
            pixels, see `check_image_processor`.
    """
    check_image_processor(image_processor)
    crop = getattr(image_processor, "crop_size", None) if getattr(image_processor, "do_center_crop", False) else None
    size = crop or getattr(image_processor, "size", None)
    size = dict(size) if size else {}
    side = size.get("shortest_edge")
    height, width = size.get("height", side), size.get("width", side)
    if height is None or width is None:
        raise ValueError(
            f"{type(image_processor).__name__} has size {size or None}; accepted: a size with height and width, or "
            "with shortest_edge."
        )
    normalises = bool(getattr(image_processor, "do_normalize", False))
    resample = getattr(image_processor, "resample", None)
    return InputFormat(
        height=int(height),
        width=int(width),
        mean=tuple(image_processor.image_mean) if normalises else None,
        std=tuple(image_processor.image_std) if normalises else None,
        resample=int(resample if resample is not None else Image.Resampling.BILINEAR),
    )


def check_input_format(image_processor: Any, model_config: Any) -> None:
    """Compare the processor's output with the size and the channels that the model's config states.

    Raises:
        ValueError: another image size than the model's, or a model whose input is not RGB.
    """
    made = input_format(image_processor)
    channels = getattr(model_config, "num_channels", 3)
    if channels != 3:
        raise ValueError(
            f"The model's num_channels is {channels}; accepted: 3, because images are read as RGB (grey ones too)."
        )
    if made.mean is not None and len(made.mean) != channels:
        raise ValueError(f"The image processor's image_mean has {len(made.mean)} values; the model takes {channels}.")
    image_size = getattr(model_config, "image_size", None)
    if image_size is None:
        return
    height, width = image_size if isinstance(image_size, (list, tuple)) else (image_size, image_size)
    if (made.height, made.width) != (height, width):
        raise ValueError(
            f"The image processor makes images of {made.height} x {made.width} pixels, the model's image_size is "
            f"{height} x {width}; set the processor's size to that of the model."
        )


def training_transform(image_processor: Any, augmentation: Augmentation) -> ImageTransform:
    """Return a random map from an RGB PIL image to a float32 tensor (3, height, width).

    Size, interpolation and normalisation are those of the image processor. It draws from torch's global generator
    only, so a seed fixes its result.
    """
    target = input_format(image_processor)
    interpolation = _INTERPOLATION[target.resample]
    size = [target.height, target.width]
    steps: list[Any] = []
    if augmentation.crop_scale is None:
        steps.append(v2.Resize(size, interpolation=interpolation))
    else:
        steps.append(v2.RandomResizedCrop(size, scale=(augmentation.crop_scale, 1.0), interpolation=interpolation))
    if augmentation.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
    if augmentation.affine_degrees or augmentation.affine_translate or augmentation.affine_zoom:
        steps.append(
            v2.RandomAffine(
                degrees=augmentation.affine_degrees,
                translate=(augmentation.affine_translate,) * 2,
                scale=(1 - augmentation.affine_zoom, 1 + augmentation.affine_zoom),
                shear=augmentation.affine_degrees or None,
                interpolation=InterpolationMode.BILINEAR,
            )
        )
    if augmentation.rand_augment_magnitude:
        # magnitudes run from 0 to num_magnitude_bins - 1
        steps.append(v2.RandAugment(magnitude=augmentation.rand_augment_magnitude, num_magnitude_bins=31))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    if target.mean is not None and target.std is not None:
        steps.append(v2.Normalize(mean=list(target.mean), std=list(target.std)))
    if augmentation.random_erasing:
        steps.append(v2.RandomErasing(augmentation.random_erasing))
    return v2.Compose(steps)


def evaluation_transform(image_processor: Any) -> ImageTransform:
    """Return the map of the image processor itself, from an RGB PIL image to a tensor (3, height, width)."""
    # a partial and not a closure, so that worker processes can receive it
    return functools.partial(_process_one, image_processor)


def _process_one(image_processor: Any, image: Image.Image) -> torch.Tensor:
    return image_processor(image, return_tensors="pt")["pixel_values"][0]


_INTERPOLATION = {
    int(Image.Resampling.NEAREST): InterpolationMode.NEAREST,
    int(Image.Resampling.BOX): InterpolationMode.BOX,
    int(Image.Resampling.BILINEAR): InterpolationMode.BILINEAR,
    int(Image.Resampling.HAMMING): InterpolationMode.HAMMING,
    int(Image.Resampling.BICUBIC): InterpolationMode.BICUBIC,
    int(Image.Resampling.LANCZOS): InterpolationMode.LANCZOS,
}
