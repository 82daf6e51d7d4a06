"""From the training form of a model to the packed one."""

from __future__ import annotations

import copy

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel

from .calibration import check_calibrated
from .config import QuantConfig
from .inference.execution import set_execution
from .integration.arguments import check_model
from .integration.in_memory import attach
from .integration.injection import remove_training_hooks
from .integration.plan import forgotten_layers
from .integration.quantizer import VaqQuantizer
from .integration.values import check_finite, check_packed_scales
from .nn import (
    ActivationQuantizer,
    PackedActivationQuantizer,
    PackedWeight,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
)
from .nn.packed import packed_like


@torch.no_grad()
def pack(model: PreTrainedModel) -> PreTrainedModel:
    """A packed copy of a trained, quantized model: dense integer codes and scales, no latent weights.

    `model` itself is left as it is. The copy is saved, pushed and loaded like any transformers model, and cannot be
    trained. As after loading, it computes in integer arithmetic where the device supports it; after
    `hf_vaq.inference.set_execution(packed, "simulation")` its logits are those of `model` to the last bit.

    A model that is wrapped for several devices, or compiled, is taken out of the wrapper.

    Raises:
        ValueError: if `model` is no transformers model, is not quantized by hf_vaq, is packed already, carries
            adapters or layers that came in after it was quantized, or holds numbers that no checkpoint may hold.
        hf_vaq.nn.UncalibratedError: if its activation scales were never set.
    """
    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    check_model(model, "pack")
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, QuantConfig):
        raise ValueError(
            f"{type(model).__name__} is not quantized by hf_vaq: call hf_vaq.quantize(model, config) first."
        )
    if config.packed:
        raise ValueError(f"this {type(model).__name__} is packed already.")
    if forgotten := forgotten_layers(model, config):
        raise ValueError(
            f"{forgotten[0]!r} came into this {type(model).__name__} after it was quantized: it is in full precision,"
            " and a packed checkpoint could not be loaded. For a new head load the training form with"
            " from_pretrained(..., num_labels=..., ignore_mismatched_sizes=True), or put the layer in before"
            " hf_vaq.quantize."
        )
    check_calibrated(model)
    check_finite(model)  # a weight that is no number has no code
    # Twins entered into the memo of deepcopy take the place of the originals, whose latent weights are never copied.
    twins = {id(module): twin for module in model.modules() if (twin := _packed_twin(module)) is not None}
    packed = copy.deepcopy(model, twins)
    check_packed_scales(packed)
    remove_training_hooks(packed)
    config = copy.deepcopy(config)
    config.packed = True
    attach(packed, VaqQuantizer(config, pre_quantized=True))
    return set_execution(packed.eval(), "auto")


def _packed_twin(module: nn.Module) -> nn.Module | None:
    if isinstance(module, ActivationQuantizer):
        return PackedActivationQuantizer.from_training(module)
    if isinstance(module, QuantLinear | QuantConv2d) and isinstance(module.weight_quantizer, WeightQuantizer):
        return _packed_layer(module)
    return None


def _packed_layer(layer: QuantLinear | QuantConv2d) -> PackedWeight:
    quantizer = layer.weight_quantizer
    packed = packed_like(layer, quantizer.bits, quantizer.groups)
    packed.load(layer.weight, quantizer, layer.bias)
    if layer.input_quantizer is not None:
        packed.input_quantizer = PackedActivationQuantizer.from_training(layer.input_quantizer)
    return packed
