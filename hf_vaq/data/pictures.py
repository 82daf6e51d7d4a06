"""The one place where a picture of any kind becomes upright RGB with 8 bits a channel."""

import numpy as np
from PIL import Image, ImageOps


def as_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, 8 bits a channel, turned as its EXIF orientation says.

    Palettes, grey, CMYK and transparency (which is dropped) become what Pillow makes of them. Grey levels of more than
    8 bits, which Pillow would cut off at 255, keep their order: those of 16 bits are divided by 257, so that black and
    white stay what they are, and floating-point ones from 0 to 1 multiplied by 255. Levels in 32-bit integers are
    8-bit ones where none is above 255, and 16-bit ones otherwise.

    Raises:
        ValueError: grey levels of another range.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.float64)
        low, high = levels.min(), levels.max()
        accepted = 1 if picture.mode == "F" else 65535
        if not (low >= 0 and high <= accepted):  # NaN is neither
            raise ValueError(
                f"its grey levels (mode {picture.mode}) go from {low:g} to {high:g}; accepted: 0 to {accepted}."
            )
        scale = 255 if picture.mode == "F" else 1 if picture.mode == "I" and high <= 255 else 1 / 257
        picture = Image.fromarray(np.rint(levels * scale).astype(np.uint8))
    return picture.convert("RGB")
