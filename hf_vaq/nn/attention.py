"""Attention on quantized queries, keys, values and probabilities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import bfloat16, coded, traced
from .activation_quantizer import ActivationQuantizer
from .fused_attention import fused_attention
from .fusion import is_traced, may_be_replaced, may_fuse
from .layers import quantize_for_layers

QUANTIZED_TENSORS = ("query", "key", "value", "probabilities")


def quantized_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention function in the form that transformers' attention interface calls.

    Args:
        module: the attention module; its `attention_quantizers`, if it has them, quantize the four tensors, and its
            `attention_engine`, if it has one (`hf_vaq.inference`), computes in place of this function.
        query: (batch, heads, tokens, head_dim); for Swin the batch counts windows.
        key: as `query`.
        value: as `query`.
        attention_mask: added to the scores, broadcastable to (batch, heads, tokens, tokens); Swin's and BEiT's
            relative position bias comes this way, with gradient.
        scaling: factor on the scores; 1 / sqrt(head_dim) if not given.
        dropout: probability of dropping an attention probability, in training.
        **kwargs: what other attention functions need.

    Returns:
        Output, (batch, tokens, heads, head_dim), and quantized probabilities, (batch, heads, tokens, tokens).
    """
    engine = getattr(module, "attention_engine", None)
    if engine is not None and engine.takes(module):
        return engine(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    quantizers = getattr(module, "attention_quantizers", None)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if quantizers is not None and _is_fusable(quantizers, dropout if module.training else 0.0, query, key, value):
        scaled = {name: quantizers[name].scaled() for name in QUANTIZED_TENSORS}
        return fused_attention(query, key, value, attention_mask, scaling, scaled)
    operands = query, key, value

    def quantized(name: str, x: Tensor) -> Tensor:
        return quantizers[name](x) if quantizers is not None and name in quantizers else x

    query, key, value = quantized("query", query), quantized("key", key), quantized("value", value)
    scores = torch.matmul(query, key.transpose(2, 3))
    if is_traced(scores) and not (dropout and module.training) and _is_replaceable(quantizers, "probabilities"):
        scaled = quantizers["probabilities"].scaled()
        probabilities = traced.quantize_softmax(scores, attention_mask, scaling, scaled)
        attend = _operator(scores)
        if attend is not None and _are_replaceable(quantizers):
            # What is above stays for the probabilities; the compiler drops it where nobody reads them.
            scaled = [quantizers[name].scaled() for name in QUANTIZED_TENSORS]
            return attend(*operands, attention_mask, scaling, scaled), probabilities
        return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities
    scores = scores * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = quantized("probabilities", probabilities)
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probabilities


def _is_fusable(quantizers: nn.ModuleDict, dropout: float, *tensors: Tensor) -> bool:
    return (
        dropout == 0
        and may_fuse(*tensors)
        and all(
            name in quantizers and isinstance(quantizers[name], ActivationQuantizer) and quantizers[name].is_fusable()
            for name in QUANTIZED_TENSORS
        )
    )


def _operator(scores: Tensor) -> Callable[..., Tensor] | None:
    """What computes attention in a model that is compiled as a whole, if not the compiler."""
    if coded.applies_to(scores):
        return coded.attention
    return bfloat16.attention if bfloat16.HAS_TILES and bfloat16.applies_to(scores) else None


def _is_replaceable(quantizers: nn.ModuleDict | None, name: str) -> bool:
    return quantizers is not None and name in quantizers and traced.may_replace(quantizers[name])


def _are_replaceable(quantizers: nn.ModuleDict) -> bool:
    return all(name in quantizers and may_be_replaced(quantizers[name]) for name in QUANTIZED_TENSORS)


def quantize_shared_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook: quantize the hidden states once, for all the layers of `module` that read them."""
    quantize = partial(quantize_for_layers, quantizer=module.input_quantizer)
    if torch.compiler.is_compiling() and any(child._forward_pre_hooks for child in module.children()):
        quantize = module.input_quantizer  # a hook might change what the others read, and no compiler can tell
    if args:
        return (quantize(args[0]), *args[1:]), kwargs
    hidden_states = quantize(kwargs["hidden_states"])
    return args, {**kwargs, "hidden_states": hidden_states}
