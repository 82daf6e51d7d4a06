"""Quantize a model that is already in memory."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..config import QuantConfig
from .arguments import check_model
from .initialization import initialize_quantizers
from .injection import inject
from .plan import plan_quantization
from .publishing import publish_with_card
from .quantizer import VaqQuantizer, keep_parameter_names, require_import, set_attention
from .values import check_finite


def quantize(model: PreTrainedModel, config: QuantConfig) -> PreTrainedModel:
    """Quantize a model in place, as `from_pretrained(..., quantization_config=config)` does at loading.

    Weight scales are initialised from the weights; activations wait for `hf_vaq.calibrate` or the first training
    batch.

    Args:
        model: a full-precision model of a supported family.
        config: what to quantize, and to how many bits.

    Returns:
        The same model.

    Raises:
        ValueError: if the model is no transformers model, is quantized already, holds NaN or infinite weights, or does
            not fit `config`. The model is then unchanged.
    """
    check_model(model, "quantize")
    if not isinstance(config, QuantConfig):
        raise ValueError(f"config={config!r}: expected a hf_vaq.QuantConfig.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"this {type(model).__name__} is quantized already ({model.hf_quantizer.quantization_config})."
        )
    if config.packed:
        raise ValueError("QuantConfig.packed=True: expected False; call hf_vaq.pack(model) when the model is trained.")
    check_finite(model)
    inject(model, plan_quantization(model, config), config)
    initialize_quantizers(model)
    set_attention(model.config, config)
    attach(model, VaqQuantizer(config, pre_quantized=False))
    return model


def attach(model: PreTrainedModel, quantizer: VaqQuantizer) -> None:
    """Tell transformers that `model` is quantized, as `from_pretrained` does."""
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = quantizer.quantization_config.quant_method
    model.config.quantization_config = quantizer.quantization_config
    model.config._is_quantized = True
    keep_parameter_names(model)
    require_import(model.config)
    if quantizer.quantization_config.packed:
        publish_with_card(model)
