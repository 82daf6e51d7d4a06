"""Builders that many tests share: tiny models of every family, and images for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

IMAGE_SIZE = 32
PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "num_labels": 3,
}
STAGED = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 2,
    "num_labels": 3,
}
FAMILIES = {
    "vit": (ViTForImageClassification, ViTConfig, PLAIN),
    "deit": (DeiTForImageClassification, DeiTConfig, PLAIN),
    "deit_two_heads": (DeiTForImageClassificationWithTeacher, DeiTConfig, PLAIN),
    "swin": (SwinForImageClassification, SwinConfig, STAGED),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, PLAIN),
    "dinov2_swiglu": (Dinov2ForImageClassification, Dinov2Config, PLAIN | {"use_swiglu_ffn": True}),
    "beit": (BeitForImageClassification, BeitConfig, PLAIN | {"use_relative_position_bias": True}),
}

TINY_RECIPE = {
    "model_config": {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "dataset": "digits",
    "train_split": "train[:64]",
    "eval_split": "test[:40]",
    "horizontal_flip": 0,
    "float_num_train_epochs": 1,
    "weight_bits": 2,
    "activation_bits": 2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 20,
    "calibration_batches": 2,
    "learning_rate": "5e-4",
    "save_strategy": "epoch",
    "use_cpu": True,
    "disable_tqdm": True,
}
"""A recipe of the whole main job that takes seconds."""


def build(family: str = "vit", seed: int = 0, **config) -> PreTrainedModel:
    """A tiny, randomly initialised, full-precision model in evaluation mode."""
    model_class, config_class, arguments = FAMILIES[family]
    torch.manual_seed(seed)
    return model_class(config_class(**arguments | config)).eval()


def shift_first_block(swin: PreTrainedModel) -> PreTrainedModel:
    """Shift the windows of the first block, as Swin's second one does: a stage then needs no second block for it."""
    block = swin.swin.encoder.layers[0].blocks[0]
    block.shift_size = block.window_size // 2
    return swin


def images(count: int = 4, seed: int = 0, size: int = IMAGE_SIZE) -> torch.Tensor:
    """Standard-normal "images", (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pictures(labels: Sequence[str], count: int = 36) -> datasets.Dataset:
    """Random grey pictures, as many of each class, with the columns `image` and `label`."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(labels))})
    random = np.random.default_rng(0)
    rows = {
        "image": [Image.fromarray(random.integers(0, 256, (20, 24), dtype=np.uint8)) for _ in range(count)],
        "label": [index % len(labels) for index in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def save_pictures(folder: Path, labels: Sequence[str] = ("cat", "dog"), count: int = 40) -> None:
    """A folder of pictures for each class."""
    for index, row in enumerate(pictures(labels, count)):
        file = folder / labels[row["label"]] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(file)
