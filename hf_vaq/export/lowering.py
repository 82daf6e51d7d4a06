"""From a packed model to the module that is traced for a runtime."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from ..inference import set_execution
from ..integration.quantizer import ATTENTION
from ..nn import PackedActivationQuantizer, PackedConv2d, PackedLinear, QuantConv2d, QuantLinear
from .layers import ExportedConv2d, ExportedLinear
from .quantizers import ExportedQuantizer

EXPORTED_ATTENTION = f"{ATTENTION}_export"
RIGHT_OPERANDS = ("key", "value")


class ExportedModel(nn.Module):
    """An exported classifier: (batch, channels, height, width) to logits, (batch, labels)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits; of a model with a distillation head the mean of both heads, as in the packed model."""
        return self.model(pixel_values=pixel_values).logits


def lower(model: PreTrainedModel, quantizer: type[ExportedQuantizer]) -> ExportedModel:
    """Copy a packed model and replace what is quantized by operators of a runtime.

    Args:
        model: packed, float32, on the CPU; left as it is.
        quantizer: class of the exported quantizers, which says the runtime.
    """
    model = copy.deepcopy(model)
    set_execution(model, "simulation")
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear | QuantLinear):
            parent = model.get_submodule(name.rpartition(".")[0])
            shared = getattr(parent, "input_quantizer", None) is not None
            model.set_submodule(name, ExportedLinear(module, quantizer, shared_input=shared))
        elif isinstance(module, PackedConv2d | QuantConv2d):
            model.set_submodule(name, ExportedConv2d(module, quantizer))
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedActivationQuantizer):
            right = name.rpartition(".")[2] in RIGHT_OPERANDS
            model.set_submodule(name, quantizer(module, right_operand=right))
    if model.config._attn_implementation == ATTENTION:
        model.config._attn_implementation = EXPORTED_ATTENTION
        for module in model.modules():
            if getattr(module, "attention_quantizers", None) is not None:
                _quantize_output_by_head(module)
    return ExportedModel(model).eval()


def _quantize_output_by_head(attention: nn.Module) -> None:
    """Let the attention function quantize what the output projection reads, before the heads are joined.

    The product with the values and its quantization then stand side by side, and a runtime makes one of them.
    """
    projection = getattr(attention, "o_proj", None)
    quantized = isinstance(projection, ExportedLinear) and projection.heads == 1
    if quantized and projection.input_quantizer is not None and not projection.input_quantizer.grouped:
        attention.output_quantizer = projection.input_quantizer
        projection.input_quantizer = None


def exported_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """`hf_vaq.nn.attention.quantized_attention` with exported quantizers; arguments and results are the same.

    Scales that differ from head to head are multiplied onto the results of the integer products.
    """
    quantizers = getattr(module, "attention_quantizers", None)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling

    def quantized(name: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return quantizers[name].normalized(x) if quantizers is not None and name in quantizers else (x, None)

    query, query_scale = quantized("query", query)
    # Transposed first: between its DequantizeLinear and the product, a Transpose would keep ONNX Runtime from fusing.
    key, key_scale = quantized("key", key.transpose(2, 3))
    scores = _scaled(torch.matmul(query, key), query_scale, key_scale) * factor
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities, probability_scale = quantized("probabilities", scores.softmax(-1))
    value, value_scale = quantized("value", value)
    context = _scaled(torch.matmul(probabilities, value), probability_scale, value_scale)
    if hasattr(module, "output_quantizer"):
        context = module.output_quantizer(context)
    return context.transpose(1, 2).contiguous(), probabilities


def _scaled(product: Tensor, *scales: Tensor | None) -> Tensor:
    for scale in scales:
        product = product if scale is None else product * scale
    return product


# No mask function goes with it: an exported model has no attention mask as input, and a mask of nothing but zeros
# would be added to every score. Position biases and window masks are not made by mask functions.
AttentionInterface.register(EXPORTED_ATTENTION, exported_attention)
