"""Random-resized crops: where they lie, as fractions of the image, and their pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FULL = 65535
"""A box is stored in units of 1/65535 of the image's width and height: 16 bits a side, 0 and 1 exactly."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_ATTEMPTS = 10
_LEFT, _TOP, _FLIP = 2 * _ATTEMPTS, 2 * _ATTEMPTS + 1, 2 * _ATTEMPTS + 2
_DRAWS = 24
"""Random numbers a crop may use; a multiple of the 4 that Philox makes at a time."""


@dataclass(frozen=True)
class CropSampling:
    """How the crops of an image are drawn: random-resized crops with flips (Szegedy et al., 2015; torchvision's).

    Attributes:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width over height, in pixels.
        horizontal_flip: probability of a mirror image.
        seed: 0 to 2^64 - 1.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop scale is {self.scale!r}; accepted: 0 < smallest <= largest <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"crop ratio is {self.ratio!r}; accepted: 0 < smallest <= largest.")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip!r}; accepted: 0 to 1.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed!r}; accepted: 0 to 2^64 - 1.")


def draw_crops(
    sampling: CropSampling, image: int, count: int, width: int, height: int, *, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the crops `first` to `first + count - 1` of one image.

    Every crop has a random generator of its own: the part of Philox's stream that begins at a place given by (seed,
    image, crop). So a crop does not depend on how many others are drawn, nor on what else is labelled, when, or where.

    Args:
        sampling: how.
        image: number of the image in its data set.
        count: of crops.
        width: of the image in pixels; with `height` it says what a ratio means.
        height: of the image in pixels.
        first: number of the first crop.

    Returns:
        Boxes (left, top, right, bottom) in 1/65535 of width or height, uint16 (count, 4), left < right and
        top < bottom; and whether to flip, bool (count,).
    """
    stream = np.random.Philox(key=np.array([sampling.seed, image], dtype=np.uint64)).advance(first * _DRAWS // 4)
    # Raw bits, and not the methods of a Generator, whose streams NumPy may change.
    uniform = (stream.random_raw(count * _DRAWS).reshape(count, _DRAWS) >> np.uint64(11)) * 2.0**-53
    area = sampling.scale[0] + (sampling.scale[1] - sampling.scale[0]) * uniform[:, :_ATTEMPTS]
    low, high = math.log(sampling.ratio[0]), math.log(sampling.ratio[1])
    ratio = np.exp(low + (high - low) * uniform[:, _ATTEMPTS : 2 * _ATTEMPTS])
    widths, heights = np.sqrt(area * ratio * height / width), np.sqrt(area / ratio * width / height)
    fits = (widths <= 1) & (heights <= 1)
    chosen = (np.arange(count), fits.argmax(1))
    none = ~fits.any(1)
    left = uniform[:, _LEFT] * (1 - widths[chosen])
    top = uniform[:, _TOP] * (1 - heights[chosen])
    boxes = np.stack([left, top, left + widths[chosen], top + heights[chosen]], 1)
    boxes[none] = _central_box(sampling.ratio, width, height)
    codes = np.rint(boxes * FULL).astype(np.int64)
    # A side of a very long image may be less than one unit.
    codes[:, :2] = np.minimum(codes[:, :2], FULL - 1)
    codes[:, 2:] = np.clip(codes[:, 2:], codes[:, :2] + 1, FULL)
    return codes.astype(np.uint16), uniform[:, _FLIP] < sampling.horizontal_flip


def cut_crop(
    image: Image.Image, box: np.ndarray, flip: bool, size: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:
    """Cut a crop out of an image and resize it, in one step: the box need not end at a border between pixels.

    Teacher and student both get their pixels from here.

    Args:
        image: RGB.
        box: (left, top, right, bottom) in 1/65535 of the image's width and height.
        flip: mirror it.
        size: (height, width) of the result.
        resample: filter; antialiased where the crop shrinks.

    Returns:
        uint8 (3, height, width).
    """
    left, top, right, bottom = (int(code) for code in box)
    # The multiplication first: 65535 * width / 65535 is width exactly, never more.
    place = (left * image.width / FULL, top * image.height / FULL, right * image.width / FULL)
    crop = image.resize((size[1], size[0]), resample, box=(*place, bottom * image.height / FULL))
    if flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1))


def normalize_pixels(pixels: Tensor, source: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Map 8-bit pixels to a model's input: output o = scale[o] * pixel[source[o]] + offset[o].

    Args:
        pixels: uint8 (batch, channels, height, width).
        source: channel of the image that each output channel is made of, (channels,), int64.
        scale: float32 (channels,).
        offset: float32 (channels,).

    Returns:
        float32, the shape of `pixels`.
    """
    if not torch.equal(source, torch.arange(len(source), device=source.device)):
        pixels = pixels.index_select(1, source)
    return pixels.float() * scale[:, None, None] + offset[:, None, None]


def _central_box(ratio: tuple[float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The largest central crop whose ratio is allowed: for images so long that no random crop of them is."""
    wide, high = 1.0, 1.0
    if width / height < ratio[0]:
        high = width / ratio[0] / height
    elif width / height > ratio[1]:
        wide = height * ratio[1] / width
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2
