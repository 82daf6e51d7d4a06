"""What the functions of this package take for a model, and what they say to anything else."""

from __future__ import annotations

import os

from torch import nn
from transformers import PreTrainedModel


def check_model(model: object, function: str) -> None:
    """Refuse what is no transformers model, or carries adapters, whose weights no quantizer sees.

    Raises:
        ValueError: naming `function`, what it was given, and what it takes.
    """
    call = f"hf_vaq.{function}(model)"
    if hasattr(model, "merge_and_unload") or has_adapters(model):
        raise ValueError(
            f"{call}: this {type(model).__name__} carries adapters: merge them first, as in"
            f" hf_vaq.{function}(model.merge_and_unload()), where model is the PeftModel."
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{call}: expected a transformers model (PreTrainedModel), got {_described(model)}.")


def check_module(model: object, function: str) -> None:
    """Refuse what is no module at all.

    Raises:
        ValueError: naming `function`, what it was given, and what it takes.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"hf_vaq.{function}(model): expected a quantized model, got {_described(model)}.")


def has_adapters(model: object) -> bool:
    """Whether layers of `model` are wrapped in those of PEFT."""
    return isinstance(model, nn.Module) and any(hasattr(module, "base_layer") for module in model.modules())


def _described(model: object) -> str:
    if isinstance(model, str | os.PathLike):
        return f"{os.fspath(model)!r}: load it with AutoModelForImageClassification.from_pretrained first"
    inner = next((name for name in ("module", "_orig_mod", "model") if hasattr(model, name)), None)
    hint = "" if inner is None else f"; the model inside may be its {inner!r}"
    return f"{type(model).__name__}{hint}"
