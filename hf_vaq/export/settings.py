"""What turns a picture into the input of an exported model, in plain numbers."""

from __future__ import annotations

from typing import Any

from ..data.transforms import check_input_format


def image_settings(image_processor: Any, model_config: Any) -> dict[str, Any]:
    """Read the steps of a transformers image processor into JSON-ready containers.

    Returns:
        `resize`: {"height", "width"}, {"shortest_edge"} or None, in pixels; `resample`: PIL's code; `crop`: {"height",
        "width"} of the centre, or None; `scale`: factor on the 8-bit values; `mean`, `std`: per channel, or None.

    Raises:
        ValueError: the processor makes images of another size than the model takes, or sizes them in a way that
            these settings do not express.
    """
    check_input_format(image_processor, model_config)

    def flag(name: str) -> bool:
        return bool(getattr(image_processor, name, False))

    resize = _size(image_processor, "size") if flag("do_resize") else None
    crop = _size(image_processor, "crop_size") if flag("do_center_crop") else None
    for field, size, accepted in (
        ("size", resize, ({"height", "width"}, {"shortest_edge"})),
        ("crop_size", crop, ({"height", "width"},)),
    ):
        if size is not None and set(size) not in accepted:
            raise ValueError(
                f"{type(image_processor).__name__} has {field} {size}; accepted: "
                f"{' or '.join(' and '.join(sorted(keys)) for keys in accepted)}."
            )
    normalize = flag("do_normalize")
    resample = getattr(image_processor, "resample", None)
    return {
        "resize": resize,
        "resample": int(resample if resample is not None else 2),
        "crop": crop,
        "scale": float(image_processor.rescale_factor) if flag("do_rescale") else 1.0,
        "mean": [float(value) for value in image_processor.image_mean] if normalize else None,
        "std": [float(value) for value in image_processor.image_std] if normalize else None,
    }


def label_names(model_config: Any) -> list[str]:
    """Names of the classes, in the order of the logits."""
    return [str(model_config.id2label[index]) for index in range(model_config.num_labels)]


def _size(image_processor: Any, name: str) -> dict[str, int]:
    size = getattr(image_processor, name)
    items = dict(size).items() if not isinstance(size, int) else [("height", size), ("width", size)]
    return {key: int(value) for key, value in items if value is not None}
