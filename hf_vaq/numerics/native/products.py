"""Products of float32 gradients with quantized matrices by the compiled kernels, on processors with AMX."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..quantization import Quantization, constant_values
from .loading import can_run, kernels
from .quantizers import gradient_of_scale, plan_of, pointer

SMALL = 1 << 16
"""Elements of a gradient below which PyTorch's own product takes less time."""
FEW = 64
"""Rows of a gradient below which it does, because a matrix of codes is made from every weight."""


class QuantizedMatrix(NamedTuple):
    """A matrix that is quantized, or shall be: of its quantized values the codes are the same.

    Attributes:
        values: (..., columns), float32.
        scale: (groups,).
        offset: (groups,), or none.
        quantization: the rest; groups are along the last dimension, or, without offset, along the first.
    """

    values: Tensor
    scale: Tensor
    offset: Tensor | None
    quantization: Quantization


class TransposedCodes(NamedTuple):
    """The codes of a matrix as the kernels take them.

    Attributes:
        numbers: bfloat16.
        matrix: what they are the codes of.
    """

    numbers: Tensor
    matrix: QuantizedMatrix


class _Matrix(ctypes.Structure):
    """`Matrix` of products.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "scales", "offsets")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "group_rows", "group_columns")),
        *((name, ctypes.c_double) for name in ("lowest", "highest")),
    )


def are_faster(grad: Tensor, *matrices: QuantizedMatrix) -> bool:
    """Whether the kernels exist, take these tensors, and take less time than PyTorch's product."""
    rows = grad.numel() // grad.shape[-1]
    tensors = (tensor for matrix in matrices for tensor in matrix[:3])
    if grad.numel() < SMALL or rows < FEW or not can_run((grad, *tensors)):
        return False
    return kernels().products is not None


def transposed_codes(matrix: QuantizedMatrix) -> TransposedCodes:
    """The codes of a matrix, of which `gradient_of_weight` can be asked several times."""
    found, library = _found(matrix), kernels().products
    numbers = torch.empty(library.vaq_size_of_codes(found.rows, found.columns), dtype=torch.bfloat16)
    library.vaq_transposed_codes(ctypes.byref(found), numbers.data_ptr(), torch.get_num_threads())
    return TransposedCodes(numbers, matrix)


def gradient_of_weight(grad: Tensor, codes: TransposedCodes) -> tuple[Tensor, Tensor]:
    """`grad^T @ quantized input`, and the sums of `grad` over its rows, which are the gradient of a bias.

    Args:
        grad: (..., out_features), contiguous.
        codes: of the input, (..., in_features).

    Returns:
        (out_features, in_features) and (out_features,).
    """
    found, outputs = _found(codes.matrix), grad.shape[-1]
    result, sums = grad.new_empty(outputs, found.columns), grad.new_empty(outputs)
    kernels().products.vaq_gradient_of_weight(
        grad.data_ptr(),
        outputs,
        ctypes.byref(found),
        codes.numbers.data_ptr(),
        result.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return result, sums


def gradient_of_input(grad: Tensor, weight: QuantizedMatrix) -> Tensor:
    """`grad @ quantized weight`.

    Args:
        grad: (..., out_features), contiguous.
        weight: (out_features, in_features).

    Returns:
        (..., in_features), contiguous.
    """
    result = grad.new_empty(*grad.shape[:-1], weight.values.shape[1])
    _gradient_of_input(grad, weight, result)
    return result


def gradients_through_input(
    grad: Tensor, x: QuantizedMatrix, weight: QuantizedMatrix
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same, and on through the quantizer of the input.

    Args:
        grad: (..., out_features), contiguous.
        x: the input, (..., in_features).
        weight: (out_features, in_features).

    Returns:
        Gradients by the values of `x`, by the logarithmic scale parameter and by the offset.
    """
    plan, result = plan_of(x.quantization, x.values.shape), torch.empty_like(x.values)
    by_scale = gradient_of_scale(x.scale, plan)
    by_offset = None if x.offset is None else gradient_of_scale(x.offset, plan)
    pointers = (pointer(tensor) for tensor in (*x[:3], by_scale, by_offset))
    _gradient_of_input(grad, weight, result, ctypes.byref(plan), *pointers)
    return result, by_scale, by_offset


def _gradient_of_input(grad: Tensor, weight: QuantizedMatrix, result: Tensor, *through: Any) -> None:
    kernels().products.vaq_gradient_of_input(
        grad.data_ptr(),
        grad.numel() // grad.shape[-1],
        ctypes.byref(_found(weight)),
        result.data_ptr(),
        *(through or [None] * 6),
        torch.get_num_threads(),
    )


def _found(matrix: QuantizedMatrix) -> _Matrix:
    values, groups = matrix.values, matrix.quantization.groups
    columns = values.shape[-1]
    rows = values.numel() // columns
    along_columns = groups.count == 1 or groups.dim % values.dim() == values.dim() - 1
    group = (rows, columns // groups.count) if along_columns else (rows // groups.count, columns)
    lowest, highest, *_ = constant_values(matrix.quantization, values.numel())
    pointers = (pointer(tensor) for tensor in matrix[:3])
    return _Matrix(*pointers, rows, columns, *group, lowest, highest)
