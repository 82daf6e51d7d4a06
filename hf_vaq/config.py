"""QuantConfig: what is quantized, how finely, to how many bits."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from .numerics.levels import check_bits
from .version import __version__

QUANT_METHOD = "vaq"
FORMAT_VERSION = 1
"""Raised when a checkpoint written by this version could no longer be read by older ones."""

CHOICES = {
    "weight_granularity": ("tensor", "head", "channel"),
    "activation_granularity": ("tensor", "head"),
    "scale_gradient": ("l1", "numel"),
    "weight_scale": ("learned", "statistics"),
}
OVERRIDABLE = ("weight_bits", "activation_bits", "weight_granularity", "activation_granularity")


@register_quantization_config(QUANT_METHOD)
@dataclass
class QuantConfig(QuantizationConfigMixin):
    """How a Vision Transformer is quantized; the scheme is variation-aware quantization (arXiv 2307.00331).

    Args:
        weight_bits: bits of the weights of the transformer blocks, 2 to 8; None leaves all weights in floating point.
        activation_bits: bits of the inputs of those layers, of queries, keys, values, attention probabilities and
            attention output, 2 to 8; None leaves all activations in floating point.
        edge_bits: bits of weights and inputs of the first and last layer and of Swin's patch merging, 2 to 8; None
            leaves those layers in floating point.
        weight_granularity: what shares a weight scale: the whole "tensor", an attention "head" (rows of the query, key
            and value projections, columns of the output projection; other layers take one scale), or an output
            "channel".
        activation_granularity: what shares an activation scale: the whole "tensor", or an attention "head" (queries,
            keys, values, probabilities and attention output; other activations take one scale).
        scale_gradient: factor on the gradient of the scales: the module-dependent "l1", 1 / sqrt(||w||_1 Qp), or LSQ's
            "numel", 1 / sqrt(numel Qp).
        weight_scale: "learned", or "statistics": a statistic of the weights, 2 mean|w| / 2^(b-1), as in OFQ's StatsQ.
        quantize_attention: whether queries, keys, values and attention probabilities are quantized.
        modules_to_not_convert: names, name suffixes or regular expressions of modules to leave alone, as everywhere in
            transformers.
        module_overrides: shell-style patterns of module names, each with the fields among weight_bits,
            activation_bits, weight_granularity and activation_granularity that differ there; a later pattern wins.
        packed: state of the model: training form (latent weights), or packed (integer codes). Set by `hf_vaq.pack`.
        format_version: version of the checkpoint layout.
        hf_vaq_version: version of this package that wrote the configuration.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """

    weight_bits: int | None = 4
    activation_bits: int | None = 4
    edge_bits: int | None = 8
    weight_granularity: str = "tensor"
    activation_granularity: str = "tensor"
    scale_gradient: str = "l1"
    weight_scale: str = "learned"
    quantize_attention: bool = True
    modules_to_not_convert: list[str] | None = None
    module_overrides: dict[str, dict[str, Any]] | None = None
    packed: bool = False
    format_version: int = FORMAT_VERSION
    hf_vaq_version: str = __version__
    quant_method: str = QUANT_METHOD

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "edge_bits"):
            check_bits(getattr(self, name), f"QuantConfig.{name}", optional=True)
        for name in CHOICES:
            _check_choice(name, getattr(self, name), f"QuantConfig.{name}")
        for name in ("quantize_attention", "packed"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"QuantConfig.{name}={getattr(self, name)!r}: expected True or False.")
        if self.quant_method != QUANT_METHOD:
            raise ValueError(f"QuantConfig.quant_method={self.quant_method!r}: expected {QUANT_METHOD!r}.")
        _check_names(self.modules_to_not_convert)
        _check_overrides(self.module_overrides)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read the `quantization_config` of a config.json.

        Raises:
            ValueError: if it was written by a newer version of this package, or has a field that does not exist.
        """
        written_by = f"hf_vaq {config_dict.get('hf_vaq_version', '(unknown version)')}"
        version = config_dict.get("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(
                f"This model was written by {written_by} in checkpoint format {version!r}; hf_vaq {__version__} reads"
                f" formats up to {FORMAT_VERSION}. Update it: pip install --upgrade hf-vaq."
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(config_dict) - known)
        if unknown:
            raise ValueError(
                f"quantization_config has unknown fields {unknown} (written by {written_by}, read by hf_vaq"
                f" {__version__}): update hf_vaq, or correct them. Known fields: {sorted(known)}."
            )
        return super().from_dict(config_dict, return_unused_kwargs=return_unused_kwargs, **kwargs)


def _check_choice(name: str, value: object, where: str) -> None:
    if value not in CHOICES[name]:
        raise ValueError(f"{where}={value!r}: expected one of {', '.join(map(repr, CHOICES[name]))}.")


def _check_names(names: object) -> None:
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"QuantConfig.modules_to_not_convert={names!r}: expected a list of strings, or None.")
    for name in names or ():
        try:
            re.compile(f"(?:{name})")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"QuantConfig.modules_to_not_convert: {name[:80]!r} is no regular expression ({error}): expected"
                r" names, name suffixes such as 'fc2', or regular expressions such as '.*\.fc2'."
            ) from error


def _check_overrides(overrides: object) -> None:
    if overrides is None:
        return
    if not isinstance(overrides, dict):
        raise ValueError(
            f"QuantConfig.module_overrides={overrides!r}: expected a mapping from name pattern to fields."
        )
    for pattern, fields in overrides.items():
        where = f"QuantConfig.module_overrides[{pattern!r}]"
        if not isinstance(pattern, str):
            raise ValueError(f"{where}: expected a shell-style pattern of module names, such as '*.fc2'.")
        if not isinstance(fields, dict) or not fields or set(fields) - set(OVERRIDABLE):
            raise ValueError(
                f"{where}={fields!r}: expected a mapping with some of the fields {', '.join(OVERRIDABLE)}."
            )
        for name, value in fields.items():
            if name in CHOICES:
                _check_choice(name, value, f"{where}[{name!r}]")
            else:
                check_bits(value, f"{where}[{name!r}]", optional=True)
