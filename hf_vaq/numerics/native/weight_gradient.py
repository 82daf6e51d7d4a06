"""The gradient of a weight from bfloat16 matrices by the compiled kernel, on processors with AMX."""

from __future__ import annotations

import torch
from torch import Tensor

from .loading import can_run, kernels


def can_multiply(grad: Tensor, x: Tensor) -> bool:
    """Whether the kernel exists and takes these arguments of `gradient_of_weight`."""
    return can_run((grad, x), torch.bfloat16) and kernels().weight_gradient is not None


def gradient_of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """`grad^T @ x`, (out_features, in_features), bfloat16; sums are taken in float32.

    Args:
        grad: (rows, out_features), contiguous, bfloat16.
        x: (rows, in_features), likewise.
    """
    (rows, outputs), inputs = grad.shape, x.shape[1]
    result = grad.new_empty(outputs, inputs)
    kernels().weight_gradient.vaq_gradient_of_bfloat16_weight(
        grad.data_ptr(), x.data_ptr(), rows, outputs, inputs, result.data_ptr(), torch.get_num_threads()
    )
    return result
