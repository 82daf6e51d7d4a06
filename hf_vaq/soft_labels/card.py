"""The card of a store: what `README.md` of its data set on the Hub says."""

from __future__ import annotations

import yaml

from ..markdown import code, plain
from .metadata import METADATA, StoreMetadata

TEMPLATE = """---
{header}---

# {title}

What a teacher says of {crops} random-resized crops of each of {images:,} images. The images themselves are not in
here. A student learns from these labels without running the teacher, with
`VaqTrainer(..., soft_labels="...", num_crops=4)` of the Python package hf_vaq, or in any other loop.

| | |
|---|---|
| teacher | {teacher} |
| teacher revision | {revision} |
| teacher fingerprint | `{fingerprint}` (BLAKE2b of its weights) |
| teacher input | {height} x {width} pixels, {dtype} |
| images | {dataset}{config}{split}, column {column} |
| source fingerprint | `{source}` (BLAKE2b of the images' digests, in order) |
| crops an image | {crops} |
| augmentation | random-resized crops of {low:g} to {high:g} of the area, width / height {narrow:.4g} to {wide:.4g}, \
{interpolation}; mirrored with probability {flip:g} |
| seed | {seed} |
| classes stored of each crop | {kept} |
| size | {size:,} bytes in {shards:,} shards, {bytes_per_crop:.2f} bytes a crop |

## Columns

One row is one image, in the order of the images.

- `image`: number of the image in its split.
- `digest`: first 64 bits, little-endian, of the BLAKE2b hash (digest size 8) of the encoded image.
- `boxes`: (left, top, right, bottom) of every crop, in units of 1/65535 of the image's width and height.
- `flips`: whether the crop is mirrored, left to right, after it is cut.
{classes}- `probabilities`: float16; {probabilities}.

`{metadata}` holds the settings, the class names and a CRC-32 of every shard.

```python
from datasets import load_dataset

labels = load_dataset("path/or/id/of/this/data/set", split="train").with_format("numpy")
labels[0]["probabilities"].shape  # {shape}
```
"""


_HEADER = {
    "task_categories": ["image-classification"],
    "tags": ["soft-labels", "knowledge-distillation", "hf_vaq"],
    "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.arrow"}]}],
}


def store_card(metadata: StoreMetadata) -> str:
    """Return the card."""
    settings = metadata.settings
    title = f"Soft labels of {_last_part(settings.teacher)} for {_last_part(settings.dataset)}"
    full = settings.top_k is None
    width = settings.layout.class_type
    return TEMPLATE.format(
        header=yaml.safe_dump({"pretty_name": title, **_HEADER}, sort_keys=False, allow_unicode=True, width=1000),
        title=plain(title),
        teacher=code(settings.teacher),
        revision=code(settings.teacher_revision) if settings.teacher_revision else "none (a local model)",
        fingerprint=settings.teacher_fingerprint,
        height=settings.teacher_image_size[0],
        width=settings.teacher_image_size[1],
        dtype=settings.teacher_dtype,
        dataset=code(settings.dataset),
        config=f", configuration {code(settings.dataset_config)}" if settings.dataset_config else "",
        split=f", split {code(settings.split)}" if settings.split else "",
        column=code(settings.image_column),
        source=metadata.source_fingerprint,
        images=metadata.num_images,
        crops=settings.crops_per_image,
        low=settings.crop_scale[0],
        high=settings.crop_scale[1],
        narrow=settings.crop_ratio[0],
        wide=settings.crop_ratio[1],
        interpolation=settings.interpolation,
        flip=settings.horizontal_flip,
        seed=settings.seed,
        kept=f"all {len(settings.label_names)}" if full else f"top {settings.top_k} of {len(settings.label_names)}",
        size=metadata.num_bytes,
        shards=len(metadata.shards),
        bytes_per_crop=metadata.bytes_per_crop,
        classes="" if full else f"- `classes`: the most probable classes of every crop, {width}.\n",
        probabilities="of every class" if full else "of these classes, after a softmax over all",
        metadata=METADATA,
        shape=(settings.crops_per_image, settings.top_k or len(settings.label_names)),
    )


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
