"""Builders of packed models for the tests of the integer engine."""

from __future__ import annotations

import torch
from helpers import build, images

import hf_vaq


def trained(family="deit", calibrated=True, model=None, **fields):
    """A quantized model in training form, in evaluation mode."""
    fields = {"weight_bits": 4, "activation_bits": 4} | fields
    model = hf_vaq.quantize(build(family) if model is None else model, hf_vaq.QuantConfig(**fields))
    if calibrated:
        hf_vaq.calibrate(model, [images(8, seed=1, size=model.config.image_size)])
    return model.eval()


def packed(family="deit", **fields):
    """A packed model, in the execution that packing chooses."""
    return hf_vaq.pack(trained(family, **fields))


@torch.inference_mode()
def logits(model, pixel_values=None):
    """Logits of test images."""
    return model(pixel_values=images() if pixel_values is None else pixel_values).logits
