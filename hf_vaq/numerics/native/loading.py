"""The kernels of this machine, if it has a C++ compiler, and the tensors that they take."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...shared_libraries import BuildError, Signature, load_library, warn_without
from ..compiled import is_plain, runs_plain

FOLDER = Path(__file__).parent
INSTRUCTIONS = {
    "AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"),
    "AVX2": ("avx2", "fma"),
}
"""By PyTorch's name of what the CPU is capable of; others get what every processor of their kind has."""
SEPARATE_OPERATIONS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
"""Each operation rounds by itself, as PyTorch's do; rounding is an instruction, not a call."""
HALVES = ("-mavx512bf16",)
"""Conversion to bfloat16, which processors with AMX have too."""
TILES = ("-mamx-tile", "-mamx-bf16")
"""AMX."""

POINTER, LONG, INT, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double
WEIGHTS = {
    "vaq_bin_regularizer": Signature(DOUBLE, (POINTER, LONG, DOUBLE, INT)),
    "vaq_count_oscillations": Signature(None, (POINTER, LONG, FLOAT, INT, INT, INT)),
}
QUANTIZERS = {
    "vaq_quantize": Signature(None, (*[POINTER] * 5, INT)),
    "vaq_differentiate": Signature(None, (*[POINTER] * 8, INT)),
    "vaq_differentiate_softmax": Signature(None, (*[POINTER] * 6, INT)),
}
GELU = {
    "vaq_quantize_gelu": Signature(None, (*[POINTER] * 3, LONG, LONG, *[POINTER] * 3, INT)),
    "vaq_differentiate_gelu": Signature(None, (*[POINTER] * 4, LONG, LONG, *[POINTER] * 6, INT)),
}
OF_TILES = {
    "products": {
        "vaq_request_tiles": Signature(INT, ()),
        "vaq_size_of_codes": Signature(LONG, (LONG, LONG)),
        "vaq_transposed_codes": Signature(None, (POINTER, POINTER, INT)),
        "vaq_gradient_of_weight": Signature(None, (POINTER, LONG, *[POINTER] * 4, INT)),
        "vaq_gradient_of_input": Signature(None, (POINTER, LONG, *[POINTER] * 8, INT)),
    },
    "attention": {
        "vaq_differentiate_attention": Signature(None, (*[POINTER] * 5, INT)),
    },
    "bfloat16_attention": {
        "vaq_attend": Signature(None, (*[POINTER] * 5, INT)),
        "vaq_differentiate_bfloat16_attention": Signature(None, (*[POINTER] * 5, INT)),
    },
    "weight_gradient": {
        "vaq_gradient_of_bfloat16_weight": Signature(None, (POINTER, POINTER, LONG, LONG, LONG, POINTER, INT)),
    },
}
"""Those for AMX, by their name in `Kernels`."""


class Kernels(NamedTuple):
    """Libraries, the last four of which are for processors with AMX.

    Attributes:
        weights: all weights of a model at once.
        quantizers: a quantizer.
        gelu: GELU of bfloat16 numbers and its quantizer, on processors that convert to bfloat16.
        products: products in the backward pass of a linear layer.
        attention: the backward pass of attention.
        bfloat16_attention: attention on bfloat16 operands, and its backward pass.
        weight_gradient: the gradient of a weight from bfloat16 matrices.
    """

    weights: ctypes.CDLL
    quantizers: ctypes.CDLL
    gelu: ctypes.CDLL | None = None
    products: ctypes.CDLL | None = None
    attention: ctypes.CDLL | None = None
    bfloat16_attention: ctypes.CDLL | None = None
    weight_gradient: ctypes.CDLL | None = None


@cache
def kernels() -> Kernels | None:
    """The compiled kernels, or None where they cannot be had; everything works without them, slower."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = [f"-m{name}" for name in INSTRUCTIONS.get(capability, ())]
    try:
        weights = load_library(FOLDER / "weights.cpp", (), flags, WEIGHTS)
        flags += SEPARATE_OPERATIONS
        quantizers = load_library(FOLDER / "quantizers.cpp", ("quantizer.h",), flags, QUANTIZERS)
    except BuildError as error:
        warn_without(error)
        return None
    return Kernels(weights, quantizers, **(_of_bfloat16(flags) if capability == "AVX512" else {}))


def _of_bfloat16(flags: Sequence[str]) -> dict[str, ctypes.CDLL | None]:
    """Those for processors that know bfloat16, with AMX or without; none where the compiler or the system does not."""
    if not torch.cpu._is_avx512_bf16_supported():
        return {}
    flags, halves = [*flags, *HALVES], ("bfloat16.h", "quantizer.h")
    found = {"gelu": _optional("gelu", halves, flags, GELU)}
    if torch.cpu._is_amx_tile_supported():
        flags, headers = [*flags, *TILES], ("bfloat16_tiles.h", "tiles.h", *halves)
        with ThreadPoolExecutor() as pool:  # where they are not compiled yet it takes some time
            made = pool.map(lambda name: _optional(name, headers, flags, OF_TILES[name]), OF_TILES)
            tiles = dict(zip(OF_TILES, made, strict=True))
        # Only the library of products can ask the system for the tiles.
        if tiles["products"] is not None and tiles["products"].vaq_request_tiles():
            found |= tiles
    return found


def _optional(name: str, headers: Sequence[str], flags: Sequence[str], signatures: dict) -> ctypes.CDLL | None:
    try:
        return load_library(FOLDER / f"{name}.cpp", headers, flags, signatures)
    except BuildError as error:
        warn_without(error)
        return None


def can_run(tensors: Iterable[Tensor | None], dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernels exist, and take these tensors: contiguous, of type `dtype`, on the CPU."""
    # Whoever wants nothing compiled, or cannot compile, gets nothing compiled.
    if torch.compiler.is_compiling() or runs_plain():
        return False
    return all(tensor is None or _is_taken(tensor, dtype) for tensor in tensors) and kernels() is not None


def _is_taken(tensor: Tensor, dtype: torch.dtype) -> bool:
    on_cpu = is_plain(tensor) and tensor.device.type == "cpu"
    return on_cpu and tensor.dtype == dtype and tensor.is_contiguous()
