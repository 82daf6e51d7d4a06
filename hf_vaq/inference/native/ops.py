"""The compiled kernels as functions of tensors, and as operators that torch.compile leaves whole."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .kept import numbered
from .loading import kernels


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scales: Tensor,
    levels: Sequence[float],
    scaling: float,
    coded: bool,
) -> Tensor:
    """Attention on the codes of queries, keys, values and probabilities.

    Args:
        query: centered bytes, (batch, heads, tokens, head_dim), as are `key` and `value`.
        key: see `query`.
        value: see `query`.
        mask: float32, added to the scores, broadcastable to (batch, heads, tokens, tokens).
        scales: float32, (5, heads): of query, key, value, probabilities and, if `coded`, output.
        levels: lowest and highest codes of those five.
        scaling: factor on the scores.
        coded: whether the output is bytes, codes of the output's quantizer.

    Returns:
        uint8 or float32, (batch, tokens, heads, head_dim).
    """
    batch, heads, tokens, dim = query.shape
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    strides = [*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], 0, 0, 0]
    if mask is not None:
        mask = mask.expand(batch, heads, tokens, tokens)
        mask = mask if mask.stride(3) == 1 else mask.contiguous()
        strides[9:] = mask.stride()[:3]
    out = torch.empty((batch, tokens, heads, dim), dtype=torch.uint8 if coded else torch.float32)
    kernels().vaq_attention(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        None if mask is None else mask.data_ptr(),
        (ctypes.c_int64 * 4)(batch, heads, tokens, dim),
        (ctypes.c_int64 * 12)(*strides),
        scales.data_ptr(),
        (ctypes.c_float * 10)(*levels),
        scaling,
        coded,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def quantize(x: Tensor, scale: float, offset: float | None, qn: int, qp: int) -> Tensor | None:
    """Byte codes of contiguous float32 `x`, uint8 of its shape; None if there is NaN in it."""
    out = torch.empty_like(x, dtype=torch.uint8)
    nan = kernels().vaq_quantize(
        x.data_ptr(),
        x.numel(),
        scale,
        offset or 0.0,
        offset is not None,
        qn,
        qp,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return None if nan else out


def step_codes(x: Tensor, breakpoints: Tensor, codes: Tensor, count: int) -> Tensor | None:
    """`codes[number of breakpoints up to x]` for each value of float32 `x`; None if there is NaN among them.

    See `hf_vaq.inference.staircase`.
    """
    x = x.contiguous()
    out = torch.empty_like(x, dtype=torch.uint8)
    nan = kernels().vaq_step_codes(
        x.data_ptr(),
        x.numel(),
        breakpoints.data_ptr(),
        codes.data_ptr(),
        count,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return None if nan else out


def layer_norm_codes(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, scale: float, qn: int, qp: int
) -> Tensor | None:
    """Byte codes of LayerNorm over the last dimension of contiguous float32 `x`; None if there is NaN among them."""
    out = torch.empty_like(x, dtype=torch.uint8)
    width = x.shape[-1]
    nan = kernels().vaq_layer_norm_codes(
        x.data_ptr(),
        x.numel() // width,
        width,
        weight.data_ptr(),
        bias.data_ptr(),
        epsilon,
        scale,
        qn,
        qp,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return None if nan else out


_LIBRARY = torch.library.Library("hf_vaq", "FRAGMENT")
_LIBRARY.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor scales, float[] levels, float scaling,"
    " bool coded) -> Tensor"
)
_LIBRARY.impl("attention", attention, "CPU")


@torch.library.register_fake("hf_vaq::attention", lib=_LIBRARY)
def _(query, key, value, mask, scales, levels, scaling, coded):
    batch, heads, tokens, dim = query.shape
    return query.new_empty((batch, tokens, heads, dim), dtype=torch.uint8 if coded else torch.float32)


def _compiled_step_codes(x: Tensor, breakpoints: Tensor, codes: Tensor, count: int) -> Tensor:
    found = step_codes(x, breakpoints, codes, count)
    # A compiled graph has no other way to go.
    return torch.zeros_like(x, dtype=torch.uint8) if found is None else found


_LIBRARY.define("step_codes(Tensor x, Tensor breakpoints, Tensor codes, int count) -> Tensor")
_LIBRARY.impl("step_codes", _compiled_step_codes, "CPU")


@torch.library.register_fake("hf_vaq::step_codes", lib=_LIBRARY)
def _(x, breakpoints, codes, count):
    return x.new_empty(x.shape, dtype=torch.uint8)


def layer(x: Tensor, kernel: int, windows: int) -> Tensor:
    """A whole transformer layer.

    Args:
        x: float32, (images, tokens, width), contiguous.
        kernel: number of a `hf_vaq.inference.layer_kernel.LayerKernel`.
        windows: number of a `hf_vaq.inference.layer_kernel.WindowsKernel`.

    Returns:
        Shape and type of `x`.
    """
    prepared, geometry = numbered(kernel), numbered(windows)
    if x.shape[1:] != (geometry.tokens, prepared.width):
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (images, {geometry.tokens}, {prepared.width}).")
    x = x.contiguous()
    out = torch.empty_like(x)
    kernels().vaq_layer(
        prepared.address,
        geometry.address,
        x.data_ptr(),
        out.data_ptr(),
        x.shape[0],
        x.shape[1],
        torch.get_num_threads(),
    )
    return out


_LIBRARY.define("layer(Tensor x, int kernel, int windows) -> Tensor")
_LIBRARY.impl("layer", layer, "CPU")


@torch.library.register_fake("hf_vaq::layer", lib=_LIBRARY)
def _(x, kernel, windows):
    return x.new_empty(x.shape)
