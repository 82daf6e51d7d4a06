"""Scales that are positive and finite whatever an optimizer does to their parameter."""

from __future__ import annotations

import torch
from torch import Tensor

# Scales lie between e^-16 and e^16 (1.1e-7 to 8.9e6); near the middle the parameter is the logarithm itself.
LOG_BOUND = 16.0


def scale_from_log(log_scale: Tensor) -> Tensor:
    """Scale s = exp(B tanh(l / B)) of a parameter l, any real number.

    In the logarithmic domain a step of an optimizer is a relative change of the scale, so that one learning rate suits
    scales of every magnitude, and none can cross zero (Jain et al., "Trained Quantization Thresholds", MLSys 2020,
    section 3.2). The bound keeps a parameter that runs away from becoming an infinite or zero scale.
    """
    return (LOG_BOUND * torch.tanh(log_scale / LOG_BOUND)).exp()


def log_from_scale(scale: Tensor) -> Tensor:
    """Parameter of a positive scale: the inverse of `scale_from_log`, for scales well inside its bounds.

    Raises:
        ValueError: if a scale is not a positive, finite number.
    """
    if not torch.isfinite(scale).all() or not (scale > 0).all():
        raise ValueError(f"scales must be positive and finite, got {scale.flatten()[:8].tolist()}.")
    limit = 1 - 1e-6
    return LOG_BOUND * torch.atanh((scale.float().log() / LOG_BOUND).clamp(-limit, limit))
