"""From a packed model to the module that is traced for a runtime."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.swin.modeling_swin import SwinLayer, SwinPatchMerging

from ..inference import set_execution
from ..inference.codes import mark_nan
from ..integration.quantizer import ATTENTION
from ..nn import PackedActivationQuantizer, PackedConv2d, PackedLinear, QuantConv2d, QuantLinear
from .attention import EXPORTED_ATTENTION
from .layers import ExportedConv2d, ExportedLinear
from .quantizers import ExportedQuantizer
from .windows import ExportedPatchMerging, ExportedSwinLayer

RIGHT_OPERANDS = ("key", "value")


class ExportedModel(nn.Module):
    """An exported classifier: (batch, channels, height, width) to logits, (batch, labels)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits; of a model with a distillation head the mean of both heads, as in the packed model.

        NaN for an image with NaN, for which the codes of a runtime have no value.
        """
        return mark_nan(self.model(pixel_values=pixel_values).logits, pixel_values)


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
        for name, module in list(model.named_modules()):
            if isinstance(module, SwinLayer):
                model.set_submodule(name, ExportedSwinLayer(module))
            elif isinstance(module, SwinPatchMerging):
                model.set_submodule(name, ExportedPatchMerging(module))
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
