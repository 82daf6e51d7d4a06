"""Attention whose two products are products of integer codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer
from ..nn.attention import QUANTIZED_TENSORS
from ..numerics.levels import integer_range
from .backends import integer_backend
from .codes import centered_bytes, from_centered, has_nan, integer_codes
from .derived import Derived
from .layers import LinearEngine
from .native import kernels, ops

BFLOAT16_EXACT = 256
"""Up to this magnitude every integer is a bfloat16 number."""


class AttentionEngine(Derived):
    """Computes attention on the codes of queries, keys, values and probabilities.

    On a CPU with AVX-512 VNNI it is one kernel, whose sums are int32 and which hands codes to the output projection.
    Elsewhere both products are floating-point products of integers. They are exact: in float32 up to 2^24, which no
    attention reaches, and in bfloat16, several times as fast on CPUs that have it, up to 256, which two-bit codes of
    64 dimensions keep.

    Args:
        backend: as of the layers.
    """

    scales: Tensor | None

    def __init__(self, backend: str | None = None):
        super().__init__()
        self.wanted_backend = backend

    def reset(self) -> None:
        """Forget what was prepared."""
        super().reset()
        self.register_buffer("scales", None, persistent=False)
        self.supported = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_buffers": {"scales": None}, "supported": False}

    def takes(self, module: nn.Module) -> bool:
        """Whether this device computes attention on codes."""
        if torch.compiler.is_exporting():
            return False
        self.prepare(module)
        return self.supported

    def sources(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """The quantizers of the attention and the one that reads its output."""
        return module.attention_quantizers, module.o_proj

    def derive(self, module: nn.Module) -> None:
        """Load the kernel and lay out the scales for it."""
        quantizers = [module.attention_quantizers[name] for name in QUANTIZED_TENSORS]
        device = quantizers[0].scale.device
        self.scales = None
        self.supported = integer_backend(device, self.wanted_backend)[0] is not None
        if not self.supported or device.type != "cpu" or kernels() is None:
            return
        projection = module.o_proj
        engine = getattr(projection, "engine", None)
        output = projection.input_quantizer if isinstance(engine, LinearEngine) else None
        self.coded = output is not None and output.offset is None and engine.is_ready(projection)
        if self.coded:
            quantizers.append(output)
        self.heads = max(quantizer.groups.count for quantizer in quantizers)
        self.scales, self.levels = scales_and_levels(quantizers, self.heads)
        self.levels += [0.0] * (10 - len(self.levels))

    def forward(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """See `hf_vaq.nn.attention.quantized_attention`, whose arguments these are.

        Queries, keys and values may also be centered bytes. The kernel keeps no probabilities: they are None unless
        they were asked for with `output_attentions`.
        """
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        dropout = dropout if module.training else 0.0
        dtype = query.dtype if query.is_floating_point() else module.o_proj.compute_dtype
        quantizers = [module.attention_quantizers[name] for name in QUANTIZED_TENSORS]
        if self.scales is None or dropout or asks_for_probabilities(module, kwargs) or has_nan(query, key, value):
            return _attend(quantizers, (query, key, value), attention_mask, scaling, dropout, dtype)
        query, key, value = map(centered_bytes, quantizers, (query, key, value))
        scales = self.scales if self.heads > 1 else self.scales.expand(-1, query.shape[1]).contiguous()
        attend = torch.ops.hf_vaq.attention if torch.compiler.is_compiling() else ops.attention
        mask = None if attention_mask is None else attention_mask.float()
        output = attend(query, key, value, mask, scales, self.levels, scaling, self.coded)
        return output if self.coded else output.to(dtype), None


def _attend(
    quantizers: Sequence[PackedActivationQuantizer],
    tensors: Sequence[Tensor],
    mask: Tensor | None,
    scaling: float,
    dropout: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """With operations of PyTorch."""
    q, k, v, p = quantizers
    query, key, value = map(from_centered, quantizers, tensors)
    if query.device.type == "cpu" and query.shape[-1] * _largest(q) * _largest(k) <= BFLOAT16_EXACT:
        query, key = query.bfloat16(), key.bfloat16()
    scores = torch.matmul(query, key.transpose(2, 3)).float() * (_per_head(q) * _per_head(k) * scaling)
    if mask is not None:
        scores = scores + mask
    # The float simulation, too, rounds the probabilities to the type of the model before it quantizes them.
    probabilities = integer_codes(p, nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(dtype))
    dropped = nn.functional.dropout(probabilities, p=dropout, training=dropout > 0)
    output = torch.matmul(dropped, value) * (_per_head(p) * _per_head(v))
    return output.to(dtype).transpose(1, 2).contiguous(), (probabilities * _per_head(p)).to(dtype)


def scales_and_levels(quantizers: Sequence[PackedActivationQuantizer], heads: int) -> tuple[Tensor, list[float]]:
    """Quantizers as the kernels take them: float32 scales, (quantizers, heads); lowest and highest code of each."""
    scales = torch.stack([quantizer.scale.float().expand(heads) for quantizer in quantizers])
    return scales, [float(level) for q in quantizers for level in integer_range(q.bits, q.signed)]


def can_be_coded(quantizers: nn.ModuleDict | None) -> bool:
    """Whether all four tensors of an attention have quantizers."""
    return quantizers is not None and all(name in quantizers for name in QUANTIZED_TENSORS)


def asks_for_probabilities(module: nn.Module, arguments: dict[str, Any]) -> bool:
    """Whether a call with these arguments wants attention probabilities."""
    return bool(arguments.get("output_attentions", getattr(module.config, "output_attentions", False)))


def _largest(quantizer: PackedActivationQuantizer) -> int:
    return max(map(abs, integer_range(quantizer.bits, quantizer.signed)))


def _per_head(quantizer: PackedActivationQuantizer) -> Tensor:
    return quantizer.scale if quantizer.groups.count == 1 else quantizer.scale.view(-1, 1, 1)
