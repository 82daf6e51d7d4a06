"""The quantizer that `from_pretrained` and `save_pretrained` call."""

from __future__ import annotations

import re
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.quantizers import HfQuantizer, register_quantizer

from ..config import QUANT_METHOD, QuantConfig
from ..inference.execution import set_execution
from ..nn import (
    ActivationQuantizer,
    activation_quantizers,
    quantizer_parameter_names,
)
from ..nn.attention import quantized_attention
from .checkpoint import (
    check_loaded,
    check_not_packed,
    check_packed_files,
    check_types,
    leave_out_new_pooler,
    read_headers,
)
from .initialization import initialize_new_quantizers, initialize_quantizers
from .injection import inject
from .plan import plan_quantization
from .publishing import publish_with_card
from .values import check_finite, check_packed_scales

ATTENTION = QUANT_METHOD
MISSING_PACKAGE = "vaq: needs 'import hf_vaq' (pip install hf-vaq)"
"""What config.json of a saved model names as its attention.

Where this package is not imported, transformers would only warn of an unknown quantization and fill the layers with
random numbers; but an unknown attention is an error to it, and the message quotes this name."""
for _name in (ATTENTION, MISSING_PACKAGE):
    AttentionInterface.register(_name, quantized_attention)
    # Without a mask function of the same name transformers drops a user's attention mask.
    AttentionMaskInterface.register(_name, eager_mask)


@register_quantizer(QUANT_METHOD)
class VaqQuantizer(HfQuantizer):
    """Loads full-precision checkpoints into quantized models, and both forms of quantized checkpoints."""

    quantization_config: QuantConfig

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        """Choose the attention function. It is not part of config.json, so it is chosen anew at every load."""
        set_attention(config, self.quantization_config)
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        config = self.quantization_config
        if config.packed and not self.pre_quantized:
            raise ValueError(
                "QuantConfig.packed=True describes a checkpoint that holds packed codes; to quantize a full-precision"
                " checkpoint, load it with packed=False and call hf_vaq.pack(model) when it is trained."
            )
        # What a classifier's patterns name, a bare model that is loaded from its checkpoint need not have.
        plan = plan_quantization(model, config, all_patterns=not self.pre_quantized)
        headers = read_headers(checkpoint_files)
        self._from_files = bool(checkpoint_files)
        if config.packed:
            leave_out_new_pooler(model, plan, headers)
        inject(model, plan, config)
        if config.packed and self._from_files:
            check_packed_files(model, headers, checkpoint_files)
        elif not config.packed:
            check_not_packed(headers)
            check_types(model, headers)
        if not self.pre_quantized:
            # A full-precision checkpoint has no scales; they are initialised below, so nothing is worth a warning.
            state = quantizer_parameter_names(model) | {
                f"{name}.calibrated"
                for name, module in model.named_modules()
                if isinstance(module, ActivationQuantizer)
            }
            ignored = model._keys_to_ignore_on_load_missing or []
            model._keys_to_ignore_on_load_missing = [*ignored, *(f"^{re.escape(name)}$" for name in sorted(state))]
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        packed = self.quantization_config.packed
        if not self.pre_quantized:
            initialize_quantizers(model)
        elif not packed:
            initialize_new_quantizers(model)
        check_finite(model)
        if packed:
            if not self._from_files:
                check_loaded(model)
            check_packed_scales(model)
        for _, quantizer in activation_quantizers(model):
            quantizer.is_calibrated()  # it remembers: a compiled model could not look at the buffer
        keep_parameter_names(model)
        require_import(model.config)
        if packed:
            set_execution(model, "auto")
            publish_with_card(model)
        return model

    def is_serializable(self) -> bool:
        """Both forms are saved as they are in memory."""
        return True

    @property
    def is_trainable(self) -> bool:
        """The training form is; packed codes are not."""
        return not self.quantization_config.packed

    @property
    def is_qat_trainable(self) -> bool:
        """The Trainer asks this of quantized models."""
        return self.is_trainable

    @property
    def is_compileable(self) -> bool:
        """Nothing in the quantized modules stands in the way of `torch.compile`."""
        return True


def set_attention(model_config: PretrainedConfig, config: QuantConfig) -> None:
    """Make attention modules call the quantized attention function, if `config` quantizes activations there."""
    overrides = (config.module_overrides or {}).values()
    any_bits = [config.activation_bits, *(fields.get("activation_bits") for fields in overrides)]
    if config.quantize_attention and any(any_bits):
        model_config._attn_implementation = ATTENTION
    elif model_config._attn_implementation == MISSING_PACKAGE:
        model_config._attn_implementation = None  # the default of transformers


def require_import(model_config: PretrainedConfig) -> None:
    """Make loading what `model_config` is saved with fail, and say why, where this package is not imported."""
    # A plain attribute: it is saved, while the property `_attn_implementation`, which is in force, is not.
    model_config.attn_implementation = MISSING_PACKAGE


def keep_parameter_names(model: PreTrainedModel) -> None:
    """Save parameters under the names they have in memory.

    transformers would write the names of its older versions, but the Trainer reads checkpoints back without renaming
    (transformers issue 43701), and would lose most of them. `from_pretrained` reads both.
    """
    model._weight_conversions = []
