"""Small photographs, teachers, and stores of their labels."""

import datasets
import numpy as np
from helpers import build
from PIL import Image
from transformers import ViTImageProcessor

from hf_vaq.soft_labels import label_dataset

SIZE = 8


def photographs(count=12, seed=0):
    """Smooth random pictures of several shapes, stored as PNG."""
    random = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(coarse).resize((20 + index % 5, 16 + index % 3), Image.Resampling.BICUBIC))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    columns = {"image": pictures, "label": [index % 3 for index in range(count)]}
    return datasets.Dataset.from_dict(columns, features=features)


def processor(size=SIZE, **fields):
    return ViTImageProcessor(size={"height": size, "width": size}, **fields)


def teacher(num_labels=3, seed=1, size=SIZE):
    """Tiny, and sure of what it says: crops differ in their labels."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "image_size": size, "patch_size": 4}
    return build("vit", seed, **shape, num_labels=num_labels, initializer_range=0.5)


def store_of(images, folder, model=None, **fields):
    defaults = {"crops_per_image": 6, "top_k": 2, "images_per_shard": 5, "batch_size": 12}
    fields = {"teacher_processor": processor(), **defaults, **fields}
    return label_dataset(images, model or teacher(), folder, **fields)


def files_of(folder):
    """Every file below a folder with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
