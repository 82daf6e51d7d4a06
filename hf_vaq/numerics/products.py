"""The matrix products that give the gradients of a linear layer, by the fastest way there is.

Where a processor has AMX, products of float32 gradients with quantized matrices are those of native code, see
`native/products.cpp`, and so is the gradient of a weight in bfloat16, see `native/weight_gradient.cpp`. On x86 PyTorch
multiplies float32 matrices with MKL, which runs at less than half speed on processors that are not Intel's; oneDNN,
which PyTorch uses for convolutions, does not. A product of matrices is a convolution with a kernel of one pixel, so
there the gradients are computed as such. Only sums are taken in another order. Forward passes keep the library that
everybody else uses: the logits must have the same bits in training form and packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..machine import processor_vendor
from .fused import fused_gradients, fused_quantize
from .native import products, weight_gradient
from .native.products import QuantizedMatrix, TransposedCodes

LARGE = 1 << 16
"""Elements of a gradient from which another way than PyTorch's product is worth its greater overhead."""
NARROW = 16
"""Features below which it is not: they do not fill a vector register."""

_MKL_IS_SLOW = (
    torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and processor_vendor() != "GenuineIntel"
)
_HAS_TILES = torch.cpu._is_amx_tile_supported()
_GEOMETRY = [1, 1], [0, 0], [1, 1], False, [0, 0], 1  # stride, padding, dilation, transposed, output padding, groups


def operand_of_weight_gradient(
    grad: Tensor, x: QuantizedMatrix, dtype: torch.dtype | None = None
) -> Tensor | TransposedCodes:
    """The input of a layer as `gradients_of_parameters` takes it.

    Args:
        grad: gradient of the result of the layer, or of one of the layers that read the input.
        x: input before quantization.
        dtype: of quantized values; that of `x` if not given.
    """
    return products.transposed_codes(x) if products.are_faster(grad, x) else fused_quantize(*x, dtype)


def gradients_of_parameters(
    grad: Tensor, x: Tensor | TransposedCodes, weight: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and, if it is wanted, bias of a linear layer.

    Args:
        grad: gradient of the result, (..., out_features).
        x: input, (..., in_features), in the type of `grad`; or what `operand_of_weight_gradient` made of it.
        weight: a tensor like the gradient, as the weight is, (out_features, in_features); its values are not read.
        with_bias: whether the second is wanted.

    Returns:
        (out_features, in_features), contiguous, and (out_features,), float32, or None.
    """
    if isinstance(x, TransposedCodes):
        return products.gradient_of_weight(grad.contiguous(), x)
    return gradient_of_linear_weight(grad, x, weight), gradient_of_bias(grad) if with_bias else None


def gradient_of_bias(grad: Tensor) -> Tensor:
    """The sums of (..., out_features) over all dimensions but the last, float32."""
    return grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32)


def gradients_through_input(
    grad: Tensor, x: QuantizedMatrix, weight: QuantizedMatrix
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by the input of a linear layer before quantization, its logarithmic scale parameter and its offset.

    Args:
        grad: gradient of the result, (..., out_features).
        x: input before quantization, (..., in_features).
        weight: before quantization, (out_features, in_features).
    """
    if products.are_faster(grad, weight, x):
        return products.gradients_through_input(grad, x, weight)
    return fused_gradients(gradient_of_quantized_input(grad, x.values, weight), *x)


def gradient_of_quantized_input(grad: Tensor, x: Tensor, weight: QuantizedMatrix) -> Tensor:
    """As `gradient_of_linear_input`, of a weight that is not quantized yet."""
    if products.are_faster(grad, weight):
        return products.gradient_of_input(grad, weight)
    return gradient_of_linear_input(grad, x, fused_quantize(*weight, grad.dtype))


def gradient_of_linear_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`grad @ weight`.

    Args:
        grad: gradient of the result, (..., out_features).
        x: a tensor like the gradient, as the input is, (..., in_features); its values are not read.
        weight: (out_features, in_features), in the type of `grad`.

    Returns:
        (..., in_features), contiguous.
    """
    if not _by_convolution(grad, *weight.shape):
        return product_of_rows(grad, weight)
    rows = grad.reshape(-1, grad.shape[-1])
    values = _as_the_result(x.reshape(-1, x.shape[-1]), rows.dtype)
    by_input = torch.ops.hf_vaq.by_linear_input if torch.compiler.is_compiling() else _by_input
    return by_input(rows, values, weight).view(*grad.shape[:-1], weight.shape[1])


def gradient_of_linear_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`grad^T @ x`, summed over all dimensions but the last.

    Args:
        grad: gradient of the result, (..., out_features).
        x: input, (..., in_features), in the type of `grad`.
        weight: a tensor like the gradient, as the weight is, (out_features, in_features); its values are not read.

    Returns:
        (out_features, in_features), contiguous.
    """
    rows, values = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    if _by_tiles(rows):
        return torch.ops.hf_vaq.by_bfloat16_weight(rows, values)
    if not _by_convolution(grad, rows.shape[1], values.shape[1]):
        return rows.t() @ values
    by_weight = torch.ops.hf_vaq.by_linear_weight if torch.compiler.is_compiling() else _by_weight
    return by_weight(rows, values, _as_the_result(weight, rows.dtype))


def product_of_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix` as a product of two matrices.

    Of a tensor with more dimensions that is not contiguous PyTorch, where it compiles, makes a product for each of the
    first ones, and before that as many copies of the matrix.

    Args:
        x: (..., features).
        matrix: (features, results).

    Returns:
        (..., results), contiguous.
    """
    return (x.reshape(-1, x.shape[-1]) @ matrix).view(*x.shape[:-1], matrix.shape[1])


def _by_tiles(grad: Tensor) -> bool:
    return _HAS_TILES and grad.device.type == "cpu" and grad.dtype == torch.bfloat16 and grad.numel() >= LARGE


def _by_convolution(grad: Tensor, *features: int) -> bool:
    plain = _MKL_IS_SLOW and grad.device.type == "cpu" and grad.dtype == torch.float32
    return plain and grad.numel() >= LARGE and min(features) >= NARROW


def _as_the_result(like: Tensor, dtype: torch.dtype) -> Tensor:
    """What a convolution is told its result shall be like: `like` itself if it can be, which takes no memory."""
    if like.is_contiguous() and like.dtype == dtype:
        return like
    return torch.empty(like.shape, dtype=dtype, device=like.device)


def _by_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """(rows, in_features) from (rows, out_features); `x` is only like the result."""
    result = _convolution_backward(grad, x, weight, [True, False, False])[0]
    return result.permute(0, 2, 3, 1).reshape(x.shape)


def _by_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """(out_features, in_features) from (rows, out_features) and (rows, in_features); `weight` is like the result."""
    result = _convolution_backward(grad, x, weight, [False, True, False])[1]
    return result.reshape(weight.shape)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of a convolution over an image of one row, a pixel for each row of `grad`, channels last in memory."""
    image = [rows[None, None].permute(0, 3, 1, 2) for rows in (grad, x)]
    return torch.ops.aten.convolution_backward(*image, weight[:, :, None, None], None, *_GEOMETRY, wanted)


# In a model that is compiled as a whole the two are operators, not convolutions: of an image of one row the compiler
# forgets that its channels are last, and every matrix would be transposed in memory before its product.


@torch.library.custom_op("hf_vaq::by_linear_input", mutates_args=())
def _by_linear_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _by_input(grad, x, weight).contiguous()


@_by_linear_input.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("hf_vaq::by_linear_weight", mutates_args=())
def _by_linear_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _by_weight(grad, x, weight).contiguous()


@_by_linear_weight.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


@torch.library.custom_op("hf_vaq::by_bfloat16_weight", mutates_args=())
def _by_bfloat16_weight(grad: Tensor, x: Tensor) -> Tensor:
    grad, x = grad.contiguous(), x.contiguous()
    if weight_gradient.can_multiply(grad, x):
        return weight_gradient.gradient_of_weight(grad, x)
    return grad.t() @ x


@_by_bfloat16_weight.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[1], x.shape[1])
