"""The arithmetic of `fused` for a model that is compiled as a whole, in an order that takes the compiler few passes.

Inductor joins a sum over a tensor with an elementwise result of the same tensor into one loop over memory if the
result is written before the sum (then GELU, say, is computed once, not twice), and two sums if both are sums of rows.
In which order operations come is left as it is in the program, so here the program says it. Values and gradients are
those of `fused` to rounding.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .fused import chain_rule, gradient_factor, slopes
from .quantization import Quantization, constant_values, factor_rule

Gradients = tuple[Tensor, Tensor | None, Tensor | None]


def traced_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, quantization: Quantization, by_rows: bool
) -> Gradients:
    """As `fused_gradients`, with one scale for the whole tensor.

    Args:
        grad: gradient of the quantized values.
        x: values before quantization.
        scale: (1,).
        offset: (1,), or none.
        quantization: the rest.
        by_rows: whether the sums are those of rows first, because rows of the gradient are what comes next (in the
            backward pass of LayerNorm); otherwise the gradient is written first, because nothing elementwise is to be
            computed from it.
    """
    shape, x, grad = x.shape, x.detach(), grad.to(torch.float32)
    if not by_rows:
        x, grad = x.reshape(-1), grad.reshape(-1)
    scale, offset = scale.reshape(()), None if offset is None else offset.reshape(())
    constants = constant_values(quantization, x.numel())
    inside, slope = slopes(x, scale, offset, constants)
    grad_x = torch.where(inside, grad, 0.0).to(x.dtype)
    if not by_rows:
        grad_x = written_flat(grad_x)
    sums = _gradients_of_quantizer(grad, inside, slope, x, scale, offset, constants, quantization, by_rows)
    return grad_x.reshape(shape), *sums


def traced_gelu_gradients(
    grad: Tensor, argument: Tensor, scale: Tensor, offset: Tensor | None, quantization: Quantization
) -> Gradients:
    """Gradients through a fake quantizer with one scale and the GELU before it; the first is that of the argument."""
    shape, grad, argument = argument.shape, grad.to(torch.float32).reshape(-1), argument.detach().reshape(-1)
    scale, offset = scale.reshape(()), None if offset is None else offset.reshape(())
    constants = constant_values(quantization, argument.numel())
    x = argument.to(torch.float32)
    distribution = 0.5 * (1 + torch.erf(x * sqrt(0.5)))
    values, derivative = x * distribution, distribution + x * torch.exp(-0.5 * x * x) * (1 / sqrt(2 * torch.pi))
    inside, slope = slopes(values, scale, offset, constants)
    grad_argument = written_flat((torch.where(inside, grad, 0.0) * derivative).to(argument.dtype))
    sums = _gradients_of_quantizer(grad, inside, slope, values, scale, offset, constants, quantization, False)
    return grad_argument.reshape(shape), *sums


def traced_softmax_statistics(scores: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """From which softmax of `scores * scaling + mask` over the last dimension is computed, and computed again.

    Returns:
        For every row the highest score, and the reciprocal of the sum of exponentials; float32.
    """
    highest = _logits(scores, mask, scaling).amax(-1, keepdim=True)
    return highest, _exponentials(scores, mask, scaling, highest).sum(-1, keepdim=True).reciprocal()


def traced_probabilities(
    scores: Tensor, mask: Tensor | None, scaling: float, highest: Tensor, reciprocal: Tensor
) -> Tensor:
    """That softmax in float32, by what `traced_softmax_statistics` returned for the first three arguments."""
    return _exponentials(scores, mask, scaling, highest) * reciprocal


def traced_softmax_gradients(
    grad: Tensor,
    scores: Tensor,
    mask: Tensor | None,
    highest: Tensor,
    reciprocal: Tensor,
    scaling: float,
    scale: Tensor,
    quantization: Quantization,
) -> tuple[Tensor, Tensor | None]:
    """Gradients through a fake quantizer of probabilities and the softmax that made them.

    Args:
        grad: gradient of the quantized probabilities, (batch, heads, tokens, tokens).
        scores: argument of `traced_probabilities`, as are the next four.
        mask: likewise.
        highest: likewise.
        reciprocal: likewise.
        scaling: likewise.
        scale: (1,).
        quantization: the rest.

    Returns:
        Gradients by the argument of softmax (scores times `scaling`, plus mask), float32, and by the logarithmic
        scale parameter.
    """
    grad, scale = grad.to(torch.float32), scale.reshape(())
    p = traced_probabilities(scores, mask, scaling, highest, reciprocal)
    constants = constant_values(quantization, p.numel())
    inside, slope = slopes(p, scale, None, constants)
    grad_p = torch.where(inside, grad, 0.0)
    projection = (grad_p * p).sum(-1, keepdim=True)
    grad_log_scale, _ = _gradients_of_quantizer(grad, inside, slope, p, scale, None, constants, quantization, True)
    return (grad_p - projection) * p, grad_log_scale


def _logits(scores: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    scores = scores.to(torch.float32)
    return scores if mask is None else scores * scaling + mask


def _exponentials(scores: Tensor, mask: Tensor | None, scaling: float, highest: Tensor) -> Tensor:
    shifted = _logits(scores, mask, scaling) - highest
    # The factor last: Inductor would otherwise look for the highest score and the lowest, and for infinite ones.
    return torch.exp(shifted * scaling if mask is None else shifted)


def _gradients_of_quantizer(
    grad: Tensor,
    inside: Tensor,
    slope: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    constants: tuple[float, ...],
    quantization: Quantization,
    by_rows: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """By the logarithmic scale parameter and by the offset, (1,)."""
    rule = factor_rule(quantization)
    if rule == "none":
        return None, None

    def total(values: Tensor) -> Tensor:
        return (values.sum(-1) if by_rows else values).sum().reshape(1)

    everything = list(range(x.dim()))
    grad_log_scale = chain_rule(total(slope * grad), x, scale, constants, rule, everything)
    if offset is None:
        return grad_log_scale, None
    clipped = total(torch.where(inside, 0.0, grad))
    return grad_log_scale, clipped * gradient_factor(x, constants, rule, everything)


def written_flat(x: Tensor) -> Tensor:
    """`x`, (n,), which the compiler writes to memory here: this view is one that it does not look through.

    One dimension, because the view is one of memory, and of several dimensions the compiler would choose the order.
    """
    return x.as_strided(x.shape, (1,)) if x.device.type == "cpu" else x
