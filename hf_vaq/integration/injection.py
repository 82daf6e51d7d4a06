"""Replace the layers of a stock model by quantized ones, as a plan says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from ..config import QUANT_METHOD, QuantConfig
from ..nn import (
    ActivationQuantizer,
    PackedActivationQuantizer,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
)
from ..nn.attention import quantize_shared_input
from ..nn.fusion import set_fusion
from ..nn.packed import convolution_geometry, packed_like
from ..nn.recomputed import remember_gelu, remember_norm
from . import families
from .plan import ActivationSpec, Plan, WeightSpec
from .score_masks import write_bias, write_mask
from .windows import note_windows, remember_windows

ActivationFactory = Callable[[ActivationSpec], nn.Module]


def inject(model: PreTrainedModel, plan: Plan, config: QuantConfig) -> None:
    """Put quantizers and quantized layers into `model`, in the form, training or packed, that `config.packed` says.

    Weights and biases are taken over as they are, on whatever device (the meta device while a checkpoint is being
    loaded). Packed layers are only made where there is nothing to take over: on the meta device.
    """
    make = _packed_activation if config.packed else _training_activation(config)
    for name in plan.weights | plan.inputs:
        layer = model.get_submodule(name)
        if config.packed and name in plan.weights:
            with torch.device("meta"):
                quantized = packed_like(layer, plan.weights[name].bits, plan.weights[name].groups)
        else:
            quantized = _training_layer(layer, plan.weights.get(name), config)
        if name in plan.inputs:
            quantized.input_quantizer = _on_device_of(layer.weight, make, plan.inputs[name])
        # Whatever is put in takes the mode of what is there: in evaluation nothing may calibrate itself.
        model.set_submodule(name, quantized.train(layer.training))
    for name, spec in plan.shared_inputs.items():
        module = model.get_submodule(name)
        module.input_quantizer = _on_device_of(next(module.parameters()), make, spec).train(module.training)
        module.register_forward_pre_hook(quantize_shared_input, with_kwargs=True)
    for name, specs in plan.attention.items():
        attention = model.get_submodule(name)
        device_like = next(attention.parameters())
        attention.attention_quantizers = nn.ModuleDict(
            {tensor: _on_device_of(device_like, make, spec) for tensor, spec in specs.items()}
        ).train(attention.training)
        attention.register_forward_pre_hook(require_quantized_attention, with_kwargs=True)
    if not config.packed:
        _remember_sources(model, plan)
        _write_score_masks(model)
    set_fusion(model)


def require_quantized_attention(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attention with quantizers: refuse an attention function that does not ask them.

    Raises:
        ValueError: `set_attn_implementation` or the config chose another one.
    """
    chosen = attention.config._attn_implementation
    if not str(chosen).startswith(QUANT_METHOD):
        raise ValueError(
            f"attn_implementation={chosen!r} would compute without the quantizers of this model's attention: expected"
            f" {QUANT_METHOD!r}, which also returns attention probabilities (output_attentions=True). To compute"
            " attention in floating point, quantize with QuantConfig(quantize_attention=False)."
        )


def _remember_sources(model: PreTrainedModel, plan: Plan) -> None:
    """Let quantized layers know the GELU or LayerNorm before them, so that they need not keep its result."""
    for name in plan.inputs:
        activation = _activation_before(model, name)
        if activation is not None:
            activation.register_forward_hook(remember_gelu)
    readers = plan.inputs.keys() | plan.shared_inputs.keys()
    for name, module in model.named_modules():
        for norm_name, relative in families.NORM_READERS.items():
            norm = getattr(module, norm_name, None)
            if not _is_plain_norm(norm) or not any(f"{name}.{reader}" in readers for reader in relative):
                continue
            if relative == ("attention",) and families.has_windows(module):
                module.register_forward_pre_hook(remember_windows, with_kwargs=True)
                # Before the hook that quantizes them.
                module.attention.register_forward_pre_hook(note_windows, with_kwargs=True, prepend=True)
            else:
                norm.register_forward_hook(remember_norm)


def _write_score_masks(model: PreTrainedModel) -> None:
    """Let position biases and masks of windows be written to memory where the whole model is compiled."""
    for module in model.modules():
        bias = getattr(module, "relative_position_bias", None)
        if isinstance(bias, nn.Module):
            bias.register_forward_hook(write_bias)
            module.register_forward_pre_hook(write_mask, with_kwargs=True)


def remove_training_hooks(model: nn.Module) -> None:
    """Take those hooks away, from a model that is not to be trained."""
    ours = remember_gelu, remember_norm, remember_windows, note_windows, write_bias, write_mask
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook in ours]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def _is_plain_norm(norm: nn.Module | None) -> bool:
    return type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1 and norm.weight is not None


def _activation_before(model: PreTrainedModel, name: str) -> nn.Module | None:
    """GELU, if that is what the layer `name` reads."""
    parent, _, role = name.rpartition(".")
    activation = getattr(model.get_submodule(parent), "activation_fn", None) if role in families.AFTER_GELU else None
    return activation if isinstance(activation, nn.GELU | GELUActivation) and _is_exact(activation) else None


def _is_exact(activation: nn.Module) -> bool:
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return activation.act is nn.functional.gelu


def _on_device_of(parameter: torch.Tensor, make: ActivationFactory, spec: ActivationSpec) -> nn.Module:
    with torch.device(parameter.device):
        return make(spec)


def _training_activation(config: QuantConfig) -> ActivationFactory:
    def make(spec: ActivationSpec) -> nn.Module:
        return ActivationQuantizer(spec.bits, spec.groups, spec.signed, spec.with_offset, config.scale_gradient)

    return make


def _packed_activation(spec: ActivationSpec) -> nn.Module:
    return PackedActivationQuantizer(spec.bits, spec.groups, spec.signed, spec.with_offset)


def _training_layer(layer: nn.Linear | nn.Conv2d, spec: WeightSpec | None, config: QuantConfig) -> nn.Module:
    with torch.device("meta"):  # the parameters are replaced at once
        if isinstance(layer, nn.Linear):
            quantized = QuantLinear(layer.in_features, layer.out_features, layer.bias is not None)
        else:
            shape = (layer.in_channels, layer.out_channels, layer.kernel_size)
            quantized = QuantConv2d(*shape, bias=layer.bias is not None, **convolution_geometry(layer))
    quantized.weight, quantized.bias = layer.weight, layer.bias
    if spec is not None:
        learned = config.weight_scale == "learned"
        with torch.device(layer.weight.device):
            quantized.weight_quantizer = WeightQuantizer(spec.bits, spec.groups, learned, config.scale_gradient)
    return quantized
