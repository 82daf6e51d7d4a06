"""Whether the settings of an image processor make sensible pixels of an image."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
RESAMPLING = tuple(int(value) for value in Image.Resampling)


def check_image_processor(image_processor: Any) -> None:
    """Refuse settings with which every image fails, or becomes infinite.

    Raises:
        ValueError: naming the setting, its value and what is accepted.
    """

    def setting(name: str) -> Any:
        return getattr(image_processor, name, None)

    def refuse(name: str, accepted: str) -> None:
        raise ValueError(f"{name} is {setting(name)!r}, expected {accepted}.")

    for name in FLAGS:
        if not isinstance(setting(name), bool | None):
            refuse(name, "true or false")
    for name in ("size", "crop_size") if setting("do_center_crop") else ("size",):
        sides = dict(setting(name) or {}).values()
        if not all(side is None or (_is_number(side) and side == int(side) and side > 0) for side in sides):
            refuse(name, "positive integers")
    if setting("do_rescale") and not (_is_number(setting("rescale_factor")) and setting("rescale_factor") > 0):
        refuse("rescale_factor", "a positive number")
    for name in ("image_mean", "image_std") if setting("do_normalize") else ():
        values = setting(name)
        if not (isinstance(values, list | tuple) and values and all(map(_is_number, values))):
            refuse(name, "a list of numbers, one a channel")
    if setting("do_normalize"):
        count = len(setting("image_mean"))
        if len(setting("image_std")) != count or not all(value > 0 for value in setting("image_std")):
            refuse("image_std", f"{count} positive numbers, as many as image_mean has")
    if setting("do_resize") and setting("resample") not in (None, *RESAMPLING):
        refuse("resample", f"one of {', '.join(map(str, RESAMPLING))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
