"""The models that a benchmark compares: input for them, and the float twin of a quantized one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def pixel_values(model: PreTrainedModel, batch_size: int, seed: int = 0) -> Tensor:
    """Standard-normal images on the device of `model`: (batch, channels, height, width).

    Time does not depend on what the images show.
    """
    size = model.config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch_size, model.config.num_channels, height, width, generator=generator)
    return pixels.to(model.device)


@torch.no_grad()
def float_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A stock float32 model of the same architecture, on the CPU, in evaluation mode, without any quantizer.

    Its weights are those of `model`: of a packed model the dequantized ones, of a training form the latent ones. Its
    time and memory are those of the full-precision model; its accuracy is not.

    Args:
        model: an image-classification model of transformers; float, quantized in training form, or packed.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = None  # the registered one quantizes; None lets transformers choose its own
    config.dtype = torch.float32
    twin = type(model)(config).eval()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in twin.state_dict().items():
        tensor.copy_(tensors[name] if name in tensors else _computed(model, name))
    return twin


def _computed(model: nn.Module, name: str) -> Tensor:
    """A tensor that is no parameter of its module but computed by it, as the weight of a packed layer is."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)
