"""Builders that many tests share: tiny models of every family, and images for them."""

from __future__ import annotations

import torch
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


def build(family: str = "vit", seed: int = 0, **config) -> PreTrainedModel:
    """A tiny, randomly initialised, full-precision model in evaluation mode."""
    model_class, config_class, arguments = FAMILIES[family]
    torch.manual_seed(seed)
    return model_class(config_class(**arguments | config)).eval()


def images(count: int = 4, seed: int = 0, size: int = IMAGE_SIZE) -> torch.Tensor:
    """Standard-normal "images", (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
