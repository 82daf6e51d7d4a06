"""Fake quantization in one pass over memory, and its gradients in another.

The arithmetic is that of `fake_quantize`: the values are equal to the last bit, the gradients up to the order in which
a sum is taken. What differs is what is kept: nothing but the input itself, from which both quantized values and
gradients are computed again (there is no second tensor to keep alive, and nothing is approximated).

Contiguous float32 tensors on a CPU go to native code, where there is a C++ compiler; all others to functions that
`torch.compile` compiles.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from . import native
from .compiled import CompiledKernel
from .layout import Layout
from .log_scale import LOG_BOUND
from .native import quantizers
from .quantization import Quantization, constant_values, factor_rule
from .room import empty_with_room, has_room

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fused_quantize(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    quantization: Quantization,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Fake-quantized values, in shape and memory order of `x`; no gradient is recorded.

    Args:
        x: values, any shape, in one of `DTYPES`.
        scale: (groups,), positive.
        offset: (groups,), or none.
        quantization: the rest.
        dtype: type of the result; that of `x` if not given.
    """
    if dtype in (None, torch.float32) and native.can_run((x, scale, offset)):
        return quantizers.quantize(x, scale, offset, quantization)
    layout = Layout(x, quantization.groups)
    constants = _constants(quantization, x.numel(), x.device)
    tensors, dtype = (layout.flat(x), *layout.per_group(scale, offset), constants), dtype or x.dtype
    if not has_room(x.device):
        return layout.restore(_forward(tensors, (dtype,)))
    result = empty_with_room(tensors[0].shape, dtype)
    _forward_into((*tensors, result))
    return layout.restore(result)


def fused_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    quantization: Quantization,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by `x`, by the logarithmic scale parameter (see `scale_from_log`) and by the offset.

    Args:
        grad: gradient of the quantized values, in their shape.
        x: as for `fused_quantize`; as are the others.
        scale: (groups,).
        offset: (groups,), or none.
        quantization: the rest. With `factor="none"` there are no gradients by scale and offset.

    Returns:
        The first in type, shape and memory order of `x`, the others float32, (groups,).
    """
    if grad.dtype == torch.float32 and native.can_run((x, scale, offset)):
        return quantizers.gradients(grad.contiguous(), x, scale, offset, quantization)
    layout = Layout(x, quantization.groups)
    constants = _constants(quantization, x.numel(), x.device)
    grad_x, grad_log_scale, grad_offset = _backward(
        (layout.flat(grad), layout.flat(x), *layout.per_group(scale, offset), constants),
        (factor_rule(quantization),),
    )
    return layout.restore(grad_x), grad_log_scale, grad_offset


def fused_weight_gradients(
    grad: Tensor, weight: Tensor, scale: Tensor, quantization: Quantization
) -> tuple[Tensor, Tensor | None]:
    """The first two of `fused_gradients` for a weight. `grad` may be overwritten, and be the first of them."""
    if native.can_run((grad, weight, scale)):
        return quantizers.gradients(grad, weight, scale, None, quantization, in_place=True)[:2]
    return fused_gradients(grad, weight, scale, None, quantization)[:2]


def fused_quantize_heads(
    x: Tensor, scale: Tensor, quantization: Quantization, dtype: torch.dtype | None = None
) -> Tensor:
    """As `fused_quantize`, without offset, for queries, keys and values: the result is contiguous.

    Args:
        x: (batch, heads, tokens, head_dim), as a view of (batch, tokens, heads, head_dim); a matrix product wants
            it the other way round, and quantization moves it on the way.
        scale: (1,), or (heads,).
        quantization: the rest; the groups are along dimension 1.
        dtype: type of the result; that of `x` if not given.
    """
    if dtype in (None, torch.float32) and native.can_run((x.transpose(1, 2), scale)):
        return quantizers.quantize_heads(x, scale, quantization)
    constants = _constants(quantization, x.numel(), x.device)
    tensors, dtype = (x.transpose(1, 2), _per_head(scale), constants), dtype or x.dtype
    if not has_room(x.device):
        return _heads_forward(tensors, (dtype,))
    result = empty_with_room(x.shape, dtype)
    _heads_forward_into((*tensors, result))
    return result


def fused_head_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, quantization: Quantization
) -> tuple[Tensor, Tensor | None]:
    """Gradients for `fused_quantize_heads`, by `x` in its memory order, and by the logarithmic scale parameter."""
    if native.can_run((grad, x.transpose(1, 2), scale)):
        return quantizers.head_gradients(grad, x, scale, quantization)
    constants = _constants(quantization, x.numel(), x.device)
    grad_x, grad_log_scale = _heads_backward(
        (grad, x.transpose(1, 2), _per_head(scale), constants), (factor_rule(quantization),)
    )
    return grad_x.transpose(1, 2), grad_log_scale


def fused_softmax_gradients(
    grad: Tensor, probabilities: Tensor, scale: Tensor, quantization: Quantization, scaling: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients through a fake quantizer of probabilities and the softmax that made them.

    Args:
        grad: gradient of the quantized probabilities, (batch, heads, tokens, tokens).
        probabilities: before quantization, likewise.
        scale: (1,), or (heads,).
        quantization: the rest; the groups are along dimension 1.
        scaling: factor on the first of the two results.

    Returns:
        Gradients by the scores, in the type of `grad`, and by the logarithmic scale parameter.
    """
    if native.can_run((grad, probabilities, scale)):
        return quantizers.softmax_gradients(grad, probabilities, scale, quantization, scaling)
    constants = _constants(quantization, probabilities.numel(), probabilities.device, scaling)
    return _softmax_backward((grad, probabilities, _per_head(scale), constants), (factor_rule(quantization),))


def _per_head(scale: Tensor) -> Tensor:
    return scale.reshape(()) if scale.numel() == 1 else scale.view(-1, 1)


def _constants(
    quantization: Quantization, numel: int, device: torch.device, scaling: float = 1.0
) -> Tensor | tuple[float, ...]:
    """Limits, the gradient factor as far as it is a constant, number of groups, and `scaling`.

    As a tensor: numbers would be compiled into the kernel, one for each of them. Where a whole model is compiled, that
    is what is wanted.
    """
    if torch.compiler.is_compiling():
        return constant_values(quantization, numel, scaling)
    return _constant_tensor(quantization, numel, device, scaling)


@lru_cache(maxsize=1024)
def _constant_tensor(quantization: Quantization, numel: int, device: torch.device, scaling: float) -> Tensor:
    # Made outside of inference mode even when first asked for inside: it may be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(constant_values(quantization, numel, scaling), dtype=torch.float32, device=device)


# The kernels. All arithmetic is in float32; limits and factors come as a tensor, see `_constants`.


def _normalized(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    x = x.to(torch.float32)
    return x / scale if offset is None else (x - offset) / scale


def _quantized(x: Tensor, scale: Tensor, offset: Tensor | None, constants: Tensor) -> Tensor:
    codes = torch.clamp(_normalized(x, scale, offset), constants[0], constants[1]).round()
    return codes * scale if offset is None else codes * scale + offset


def slopes(x: Tensor, scale: Tensor, offset: Tensor | None, constants: Tensor) -> tuple[Tensor, Tensor]:
    """Where values are inside the range, and the derivative of the quantized value by the scale."""
    v = _normalized(x, scale, offset)
    inside = (v > constants[0]) & (v < constants[1])
    return inside, torch.clamp(v, constants[0], constants[1]).round() - torch.where(inside, v, 0.0)


def _reduced(x: Tensor, scale: Tensor) -> list[int]:
    """The dimensions of `x` over which a scale is shared, see `Layout`."""
    if scale.dim() == 0:
        return list(range(x.dim()))
    return [0, 2] if x.dim() == 3 else [1]


def chain_rule(grad_scale: Tensor, x: Tensor, scale: Tensor, constants: Tensor, rule: str, dims: list[int]) -> Tensor:
    """From the sum over the slopes to the gradient of the logarithmic parameter, (groups,)."""
    grad_scale = grad_scale * gradient_factor(x, constants, rule, dims)
    position = scale.reshape(grad_scale.shape).log() / LOG_BOUND  # = tanh(l / B)
    return grad_scale * scale.reshape(grad_scale.shape) * (1 - position * position)


def gradient_factor(x: Tensor, constants: Tensor, rule: str, dims: list[int]) -> Tensor | float:
    """What multiplies the gradients of scale and offset, see `factor_rule`."""
    if rule == "numel":
        return constants[2]
    l1_norm = x.to(torch.float32).abs()
    l1_norm = l1_norm.sum(dims).reshape(-1) if rule == "l1 of the group" else l1_norm.sum() / constants[3]
    return (l1_norm * constants[1]).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()


def _forward_function(x, scale, offset, constants, dtype):
    return _quantized(x, scale, offset, constants).to(dtype)


def _forward_into_function(x, scale, offset, constants, result):
    result.copy_(_quantized(x, scale, offset, constants))


def _backward_function(gradient, x, scale, offset, constants, rule):
    inside, slope = slopes(x, scale, offset, constants)
    grad = gradient.to(torch.float32)
    grad_scale = grad_offset = None
    if rule != "none":
        dims = _reduced(x, scale)
        grad_scale = chain_rule((slope * grad).sum(dims).reshape(-1), x, scale, constants, rule, dims)
        if offset is not None:
            clipped = torch.where(inside, 0.0, grad).sum(dims).reshape(-1)
            grad_offset = clipped * gradient_factor(x, constants, rule, dims)
    grad_x = torch.where(inside, grad, 0.0)
    return grad_x.to(x.dtype), grad_scale, grad_offset


def _heads_forward_function(x, scale, constants, dtype):
    return _quantized(x, scale, None, constants).to(dtype).transpose(1, 2).contiguous()


def _heads_forward_into_function(x, scale, constants, result):
    result.copy_(_quantized(x, scale, None, constants).transpose(1, 2))


def _heads_backward_function(grad, x, scale, constants, rule):
    inside, slope = slopes(x, scale, None, constants)
    grad = grad.transpose(1, 2).to(torch.float32)
    grad_x = torch.where(inside, grad, 0.0).to(x.dtype)
    if rule == "none":
        return grad_x, None
    dims = [0, 1, 2, 3] if scale.dim() == 0 else [0, 1, 3]
    return grad_x, chain_rule((slope * grad).sum(dims).reshape(-1), x, scale, constants, rule, dims)


def _softmax_backward_function(gradient, probabilities, scale, constants, rule):
    scale = scale if scale.dim() == 0 else scale.unsqueeze(1)
    inside, slope = slopes(probabilities, scale, None, constants)
    grad, p = gradient.to(torch.float32), probabilities.to(torch.float32)
    grad_p = torch.where(inside, grad, 0.0)
    dims = [0, 1, 2, 3] if scale.dim() == 0 else [0, 2, 3]
    grad_log_scale = None
    if rule != "none":
        grad_log_scale = chain_rule((slope * grad).sum(dims).reshape(-1), p, scale, constants, rule, dims)
    grad_scores = (grad_p - (grad_p * p).sum(-1, keepdim=True)) * p * constants[4]
    return grad_scores.to(gradient.dtype), grad_log_scale


_forward = CompiledKernel(_forward_function)
_forward_into = CompiledKernel(_forward_into_function)
_backward = CompiledKernel(_backward_function)
_heads_forward = CompiledKernel(_heads_forward_function)
_heads_forward_into = CompiledKernel(_heads_forward_into_function)
_heads_backward = CompiledKernel(_heads_backward_function)
_softmax_backward = CompiledKernel(_softmax_backward_function)
