"""Fake quantization with learned step size (LSQ, Esser et al., ICLR 2020) and offset (LSQ+, Bhalgat et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from .levels import integer_range

CPU_BLOCK = 1 << 16
"""Values handled at once on the CPU: they then stay in the cache between the steps (more than twice as fast)."""


def quantize_to_codes(
    x: Tensor, scale: Tensor, bits: int, *, signed: bool = True, offset: Tensor | None = None
) -> Tensor:
    """Integer codes round(clamp((x - offset) / scale, Qn, Qp)), ties to even, as floating-point numbers.

    Args:
        x: values, any shape.
        scale: positive, broadcastable against `x`.
        bits: 2 to 8.
        signed: whether the codes are -2^(b-1)..2^(b-1)-1 or 0..2^b-1.
        offset: zero level in the units of `x`, broadcastable against it; none for a symmetric quantizer.

    Returns:
        The codes in the wider of float32 and the type of `x`; shape of `x`.
    """
    qn, qp = integer_range(bits, signed)
    return _normalize(x, scale, offset).clamp_(qn, qp).round_()


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    bits: int,
    *,
    signed: bool = True,
    offset: Tensor | None = None,
    gradient_factor: Tensor | float = 1.0,
) -> Tensor:
    """Quantize and dequantize, x_q = round(clamp((x - o) / s, Qn, Qp)) s + o, with LSQ's gradients.

    With v = (x - o) / s and the incoming gradient dy (LSQ, equations 3 and 5; LSQ+, equation 7), a value *at* a limit
    counting as clipped, as in the paper:

    - dx = dy where Qn < v < Qp, else 0;
    - ds = g sum dy (round(v) - v where Qn < v < Qp, Qn where v <= Qn, Qp where v >= Qp);
    - do = g sum dy over the clipped values.

    Args:
        x: values, any shape and floating-point type; the arithmetic is done in float32 at least.
        scale: positive step size s, broadcastable against `x`.
        bits: 2 to 8.
        signed: whether the codes are signed, see `integer_range`.
        offset: learned zero level o in the units of `x`, broadcastable against it.
        gradient_factor: g, a number or a tensor broadcastable against `scale`; the gradients of scale and offset are
            multiplied by it.

    Returns:
        The fake-quantized values, in shape and type of `x`.
    """
    qn, qp = integer_range(bits, signed)
    return _FakeQuantize.apply(x, scale, offset, qn, qp, gradient_factor)


def weight_gradient_factor(l1_norm: Tensor, numel: int, qp: int, rule: str) -> Tensor | float:
    """Factor g on the gradient of a weight scale.

    `"l1"` is the module-dependent factor of variation-aware quantization, 1 / sqrt(||w||_1 Qp): it follows the
    magnitude of each module's weights, not only their number. `"numel"` is LSQ's 1 / sqrt(numel Qp).

    Args:
        l1_norm: ||w||_1 of every scale group, (groups,).
        numel: number of weights in a group.
        qp: highest code.
        rule: "l1" or "numel".
    """
    if rule == "numel":
        return (numel * qp) ** -0.5
    return (l1_norm * qp).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()


def activation_gradient_factor(x: Tensor, groups: int, qp: int, rule: str) -> Tensor | float:
    """Factor g on the gradient of an activation scale.

    `"l1"` follows the published implementation of variation-aware quantization: 1 / (sqrt(numel) Qp) for one scale,
    1 / sqrt(||x||_1 / heads Qp) for one scale a head. `"numel"` is LSQ's 1 / sqrt(numel Qp), numel being the number of
    elements that share a scale.
    """
    if rule == "numel":
        return (x.numel() / groups * qp) ** -0.5
    if groups == 1:
        return 1 / (x.numel() ** 0.5 * qp)
    l1_norm = x.detach().abs().sum(dtype=torch.float32)
    return (l1_norm / groups * qp).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()


def _normalize(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    # bfloat16 keeps 8 bits of a quotient: too few to round an 8-bit code correctly.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / scale if offset is None else (x - offset) / scale


def _is_worth_blocks(x: Tensor, scale: Tensor) -> bool:
    """Whether `x` is a large float32 tensor on the CPU with a single scale; a compiler fuses the steps by itself."""
    return (
        not torch.compiler.is_compiling()  # asked first: an exported program would be bound to small sizes
        and x.device.type == "cpu"
        and x.dtype == scale.dtype == torch.float32
        and scale.numel() == 1
        and x.numel() > CPU_BLOCK
        and _in_memory_order(x).is_contiguous()
    )


def _quantize_in_blocks(x: Tensor, scale: Tensor, offset: Tensor | None, qn: int, qp: int) -> Tensor:
    """The same operations on the same values as on the whole tensor, so the same result to the last bit."""
    quantized = torch.empty_like(x)  # in the memory order of x
    scale, offset = scale.reshape(()), None if offset is None else offset.reshape(())
    flat, out = _in_memory_order(x).view(-1), _in_memory_order(quantized).view(-1)
    for block, result in zip(flat.split(CPU_BLOCK), out.split(CPU_BLOCK), strict=True):
        if offset is not None:
            block = torch.sub(block, offset, out=result)
        torch.div(block, scale, out=result).clamp_(qn, qp).round_().mul_(scale)
        if offset is not None:
            result += offset
    return quantized


def _in_memory_order(x: Tensor) -> Tensor:
    """`x` with its dimensions from the largest stride to the smallest; queries come as a transposed view."""
    return x.permute(sorted(range(x.dim()), key=lambda dimension: -x.stride(dimension)))


class _FakeQuantize(torch.autograd.Function):
    """Keeps x, s and o only; everything else is recomputed in the backward pass."""

    @staticmethod
    def forward(ctx, x, scale, offset, qn, qp, gradient_factor):
        ctx.save_for_backward(x, scale, offset)
        ctx.limits = qn, qp
        ctx.gradient_factor = gradient_factor
        if _is_worth_blocks(x, scale):
            return _quantize_in_blocks(x, scale, offset, qn, qp)
        quantized = _normalize(x, scale, offset).clamp_(qn, qp).round_().mul_(scale)
        if offset is not None:
            quantized += offset
        return quantized.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, scale, offset = ctx.saved_tensors
        qn, qp = ctx.limits
        v = _normalize(x, scale, offset)
        inside = (v > qn) & (v < qp)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = grad_offset = None
        if ctx.needs_input_grad[1]:
            slope = v.clamp(qn, qp).round_()
            slope -= v.mul_(inside)
            grad_scale = (slope.mul_(grad)).sum_to_size(scale.shape).mul(ctx.gradient_factor)
        if offset is not None and ctx.needs_input_grad[2]:
            clipped = grad.to(v.dtype) * ~inside
            grad_offset = clipped.sum_to_size(offset.shape).mul(ctx.gradient_factor)
        return grad_x, grad_scale, grad_offset, None, None, None
