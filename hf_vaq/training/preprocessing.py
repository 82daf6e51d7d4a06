"""From the student's pixel values to the teacher's: resize, undo one normalisation, apply the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageNormalization:
    """What an image processor does to 8-bit pixels: output o = scale[o] * pixel[source[o]] + offset[o].

    Args:
        source: channel of the image that each output channel is made of (some processors swap red and blue).
        scale: per output channel, per unit of 0 to 255.
        offset: per output channel.
        size: (height, width) of the output, or None where the processor keeps the size of the image.
    """

    source: tuple[int, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    size: tuple[int, int] | None


def measure_normalization(processor: Any, channels: int = 3) -> ImageNormalization:
    """Find out what an image processor does, by processing images of one colour.

    Reading its attributes would not do: rescaling, a second division by the standard deviation, channel order and
    crops are spelt differently in almost every family, and timm has its own.

    Args:
        processor: a callable as transformers' image processors: images=, return_tensors= to "pixel_values".
        channels: of the images.

    Raises:
        ValueError: if the output is not an affine function of one channel of the image.
    """
    name = type(processor).__name__

    def process(colour: list[int], side: int = 64) -> Tensor:
        image = np.broadcast_to(np.array(colour, dtype=np.uint8), (side, side, channels)).copy()
        return processor(images=[image], return_tensors="pt")["pixel_values"][0].double()

    def centre(output: Tensor) -> Tensor:
        # A crop larger than the image pads it with a border; its centre is always image.
        return output[:, output.shape[1] // 2, output.shape[2] // 2]

    black = process([0] * channels)
    offset = centre(black)
    bright = [process([255 if i == channel else 0 for i in range(channels)]) for channel in range(channels)]
    slopes = torch.stack([(centre(output) - offset) / 255 for output in bright], 1)
    source = slopes.abs().argmax(1)
    scale = slopes.gather(1, source[:, None])[:, 0]
    remainder = slopes.scatter(1, source[:, None], 0.0).abs().max()
    grey = centre(process([128] * channels))
    error = (grey - (offset + 128 * scale)).abs().max()
    tolerance = 1e-4 * (255 * scale.abs().max() + offset.abs().max())
    finite = torch.cat([scale, offset]).isfinite().all()
    if (
        not finite
        or offset.numel() != channels
        or scale.abs().min() == 0
        or 255 * remainder > tolerance
        or error > tolerance
    ):
        raise ValueError(
            f"image processor {name} does not map each of {channels} channels by a scale and an offset:"
            " expected rescaling, normalisation and resizing only. Pass a teacher_processor that does no more."
        )
    height, width = black.shape[1:]
    fixed = process([0] * channels, side=96).shape == black.shape
    return ImageNormalization(
        tuple(source.tolist()), tuple(scale.tolist()), tuple(offset.tolist()), (height, width) if fixed else None
    )


class PixelConversion(nn.Module):
    """Converts pixel values from one normalisation and size to another; does nothing where they are equal.

    Args:
        have: normalisation of the input.
        want: normalisation of the output.
        size: (height, width) of the output, or None to keep that of the input.
    """

    def __init__(self, have: ImageNormalization, want: ImageNormalization, size: tuple[int, int] | None):
        super().__init__()
        self.size = size
        index = [have.source.index(channel) for channel in want.source]
        factor = [w / have.scale[i] for w, i in zip(want.scale, index, strict=True)]
        shift = [offset - f * have.offset[i] for offset, f, i in zip(want.offset, factor, index, strict=True)]
        self.reorders = index != list(range(len(index)))
        self.rescales = any(f != 1 for f in factor) or any(s != 0 for s in shift)
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same with the new size."""
        if self.size is not None and tuple(pixel_values.shape[-2:]) != self.size:
            # Antialiased, as every image processor resizes: without it a smaller image is full of false detail.
            pixel_values = F.interpolate(
                pixel_values.float(), self.size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.reorders:
            pixel_values = pixel_values.index_select(1, self.index)
        return pixel_values * self.factor + self.shift if self.rescales else pixel_values
