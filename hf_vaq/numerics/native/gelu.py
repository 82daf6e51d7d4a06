"""GELU of bfloat16 numbers with the fake quantizer behind it, by the compiled kernels, on processors with AVX-512."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..quantization import Quantization
from .loading import can_run, kernels
from .quantizers import gradient_of_scale, plan_of, pointer


def can_quantize(product: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor | None) -> bool:
    """Whether the kernels exist and take these arguments of `quantize`."""
    runs = can_run((product,), torch.bfloat16) and can_run((bias, scale, offset))
    return runs and scale.numel() == 1 and kernels().gelu is not None


def quantize(
    product: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor | None, quantization: Quantization
) -> Tensor:
    """The fake-quantized GELU of `product + bias`.

    Args:
        product: (..., features), contiguous, bfloat16.
        bias: (features,), float32, or none.
        scale: (1,).
        offset: (1,), or none.
        quantization: the rest.

    Returns:
        In shape and type of `product`.
    """
    result, columns = torch.empty_like(product), product.shape[-1]
    kernels().gelu.vaq_quantize_gelu(
        ctypes.byref(plan_of(quantization, product.shape)),
        product.data_ptr(),
        pointer(bias),
        product.numel() // columns,
        columns,
        scale.data_ptr(),
        pointer(offset),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return result


def gradients(
    grad: Tensor,
    product: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    offset: Tensor | None,
    quantization: Quantization,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by `product`, by the bias, by the logarithmic scale parameter and by the offset.

    Args:
        grad: of the result of `quantize`, contiguous, bfloat16; the others are its arguments.
        product: likewise.
        bias: likewise.
        scale: likewise.
        offset: likewise.
        quantization: likewise.
    """
    plan, result, columns = plan_of(quantization, product.shape), torch.empty_like(product), product.shape[-1]
    by_bias, by_scale = None if bias is None else torch.empty_like(bias), gradient_of_scale(scale, plan)
    by_offset = None if offset is None else gradient_of_scale(offset, plan)
    kernels().gelu.vaq_differentiate_gelu(
        ctypes.byref(plan),
        grad.data_ptr(),
        product.data_ptr(),
        pointer(bias),
        product.numel() // columns,
        columns,
        scale.data_ptr(),
        pointer(offset),
        result.data_ptr(),
        pointer(by_bias),
        pointer(by_scale),
        pointer(by_offset),
        torch.get_num_threads(),
    )
    return result, by_bias, by_scale, by_offset
