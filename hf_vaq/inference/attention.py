"""Attention whose two products are products of integer codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..nn.attention import QUANTIZED_TENSORS
from ..numerics.levels import integer_range
from .codes import integer_codes

BFLOAT16_EXACT = 256
"""Up to this magnitude every integer is a bfloat16 number."""


class AttentionEngine(nn.Module):
    """Computes attention on the codes of queries, keys, values and probabilities.

    Sums of products of codes are exact: in float32 up to 2^24, which no attention reaches (head_dim 2^14 for 8-bit
    scores), and in bfloat16, several times as fast on CPUs that have it, up to 256, which two-bit codes of 64
    dimensions keep.
    """

    def takes(self, module: nn.Module, query: Tensor, dropout: float) -> bool:
        """Whether this call can be computed on codes: not with dropout, which changes probabilities after coding."""
        return dropout == 0.0

    def forward(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """See `hf_vaq.nn.attention.quantized_attention`, whose arguments these are."""
        quantizers = module.attention_quantizers
        q, k, v = (quantizers[name] for name in ("query", "key", "value"))
        p = quantizers["probabilities"]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        dtype = query.dtype
        products = torch.float32
        if query.device.type == "cpu" and query.shape[-1] * _largest(q) * _largest(k) <= BFLOAT16_EXACT:
            products = torch.bfloat16
        scores = torch.matmul(
            integer_codes(q, query).to(products), integer_codes(k, key).to(products).transpose(2, 3)
        ).float()
        scores = scores * (_per_head(q) * _per_head(k) * scaling)
        if attention_mask is not None:
            scores = scores + attention_mask
        # The float simulation, too, rounds the probabilities to the type of the model before it quantizes them.
        probabilities = integer_codes(p, nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(dtype))
        output = torch.matmul(probabilities, integer_codes(v, value)) * (_per_head(p) * _per_head(v))
        output = output.to(dtype).transpose(1, 2).contiguous()
        return output, (probabilities * _per_head(p)).to(dtype)


def can_be_coded(quantizers: nn.ModuleDict | None) -> bool:
    """Whether all four tensors of an attention have quantizers."""
    return quantizers is not None and all(name in quantizers for name in QUANTIZED_TENSORS)


def _largest(quantizer: PackedActivationQuantizer) -> int:
    return max(map(abs, integer_range(quantizer.bits, quantizer.signed)))


def _per_head(quantizer: PackedActivationQuantizer) -> Tensor:
    return quantizer.scale if quantizer.groups.count == 1 else quantizer.scale.view(-1, 1, 1)
