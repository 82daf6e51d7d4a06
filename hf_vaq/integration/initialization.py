"""First values of quantizers: of all in a new quantized model, or of those that its checkpoint does not know."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..nn import ActivationQuantizer, activation_quantizers, quantizer_parameter_names, weight_quantized_modules
from .checkpoint import was_loaded
from .families import is_head

logger = logging.get_logger(__name__)


@torch.no_grad()
def initialize_quantizers(model: nn.Module) -> None:
    """Set weight scales from the weights, and leave activation quantizers waiting for calibration.

    Tensors that are in no checkpoint arrive uninitialised, so every one of them is written here.
    """
    for _, quantizer in activation_quantizers(model):
        _reset(quantizer)
    for _, layer in weight_quantized_modules(model):
        layer.weight_quantizer.initialize(layer.weight)


@torch.no_grad()
def initialize_new_quantizers(model: PreTrainedModel) -> None:
    """Do that where the checkpoint of a training form had no scale, or one of another shape, or not its layer.

    A weight scale is set from the weight that is there now. An activation scale that was loaded is kept if what it
    sees is what it was made for: a new head changes nothing before itself; with a new part of the encoder, such as
    position embeddings for another image size, all activations wait for calibration.
    """
    for _, layer in weight_quantized_modules(model):
        scale = layer.weight_quantizer.log_scale
        if scale is not None and not (was_loaded(layer.weight) and was_loaded(scale)):
            layer.weight_quantizer.initialize(layer.weight)
    scales = quantizer_parameter_names(model)
    new = [name for name, parameter in model.named_parameters() if not was_loaded(parameter) and name not in scales]
    new = [name for name in new if not is_head(model, name)]
    if new:
        logger.warning(
            f"{new[0]!r} is not from the checkpoint, so that activations are not those their scales were made for:"
            " call hf_vaq.calibrate, or train, before the model is evaluated."
        )
    for _, quantizer in activation_quantizers(model):
        tensors = (quantizer.log_scale, quantizer.offset, quantizer.calibrated)
        if new or not all(was_loaded(tensor) for tensor in tensors if tensor is not None):
            _reset(quantizer)


def _reset(quantizer: ActivationQuantizer) -> None:
    quantizer.log_scale.zero_()
    quantizer.calibrated.fill_(False)
    if quantizer.offset is not None:
        quantizer.offset.zero_()
