"""Packed tiny models for the tests of exporting."""

from __future__ import annotations

import functools

import torch
from helpers import IMAGE_SIZE, build, images, shift_first_block
from transformers import PreTrainedModel, ViTImageProcessor

import hf_vaq
from hf_vaq import QuantConfig


def training_form(family: str = "vit", **config) -> PreTrainedModel:
    """A calibrated tiny model in training form: one block, of Swin one with shifted windows and one without."""
    model = build(family, **({"depths": [1, 1]} if family == "swin" else {"num_hidden_layers": 1}))
    if family == "swin":
        shift_first_block(model)
    hf_vaq.quantize(model, QuantConfig(**config))
    if config["activation_bits"] is not None:
        hf_vaq.calibrate(model, [{"pixel_values": images(16)}])
    return model.eval()


@functools.cache
def packed_model(family: str = "vit", **config) -> PreTrainedModel:
    """Its packed form; shared by the tests, which must leave it as it is."""
    return hf_vaq.pack(training_form(family, **config))


def processor() -> ViTImageProcessor:
    """An image processor of the size of the tiny models."""
    return ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def simulated_logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Logits of the float simulation of a packed model."""
    import copy

    from hf_vaq.inference import set_execution

    with torch.no_grad():
        return set_execution(copy.deepcopy(model), "simulation")(pixel_values=pixel_values).logits
