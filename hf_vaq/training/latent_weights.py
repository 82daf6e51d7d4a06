"""Latent weights as the compiled kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..nn import QuantConv2d, QuantLinear
from ..numerics.log_scale import scale_from_log
from ..numerics.native import LatentWeight, can_run


@torch.no_grad()
def latent_weights(modules: Sequence[QuantLinear | QuantConv2d]) -> list[LatentWeight] | None:
    """The weights of `modules`; None if kernels are not wanted or cannot run on them.

    They are wanted where the quantizers are fused, see `hf_vaq.set_fusion`.

    Args:
        modules: whose weight is fake-quantized.
    """
    quantizers = [module.weight_quantizer for module in modules]
    weights = [module.weight.detach() for module in modules]
    if not modules or not all(quantizer.fused for quantizer in quantizers) or not can_run(weights):
        return None
    if all(quantizer.log_scale is not None for quantizer in quantizers):
        # All scales at once: four operations in place of four for every module.
        counts = [quantizer.groups.count for quantizer in quantizers]
        scales = scale_from_log(torch.cat([quantizer.log_scale for quantizer in quantizers])).split(counts)
    else:
        scales = [quantizer.scale(weight) for quantizer, weight in zip(quantizers, weights, strict=True)]
    return [
        LatentWeight(weight, quantizer.groups, scale, quantizer.bits)
        for weight, quantizer, scale in zip(weights, quantizers, scales, strict=True)
    ]
