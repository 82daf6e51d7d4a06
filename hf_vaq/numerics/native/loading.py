"""The kernels of this machine, if it has a C++ compiler, and the tensors that they take."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from ...shared_libraries import BuildError, Signature, load_library
from ..compiled import compilation_failure, is_plain

logger = logging.get_logger(__name__)

FOLDER = Path(__file__).parent
INSTRUCTIONS = {
    "AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"),
    "AVX2": ("avx2", "fma"),
}
"""By PyTorch's name of what the CPU is capable of; others get what every processor of their kind has."""
SEPARATE_OPERATIONS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
"""Each operation rounds by itself, as PyTorch's do; rounding is an instruction, not a call."""
TILES = ("-mavx512bf16", "-mamx-tile", "-mamx-bf16")
"""AMX, and what else its processors have that is used with it."""

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
PRODUCTS = {
    "vaq_request_tiles": Signature(INT, ()),
    "vaq_size_of_codes": Signature(LONG, (LONG, LONG)),
    "vaq_transposed_codes": Signature(None, (POINTER, POINTER, INT)),
    "vaq_gradient_of_weight": Signature(None, (POINTER, LONG, *[POINTER] * 4, INT)),
    "vaq_gradient_of_input": Signature(None, (POINTER, LONG, *[POINTER] * 8, INT)),
}
ATTENTION = {
    "vaq_differentiate_attention": Signature(None, (*[POINTER] * 5, INT)),
}


class Kernels(NamedTuple):
    """Libraries, the last two of which are for processors with AMX.

    Attributes:
        weights: all weights of a model at once.
        quantizers: a quantizer.
        products: products in the backward pass of a linear layer.
        attention: the backward pass of attention.
    """

    weights: ctypes.CDLL
    quantizers: ctypes.CDLL
    products: ctypes.CDLL | None = None
    attention: ctypes.CDLL | None = None


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
        logger.info(f"quantizers, regularizer and oscillation tracker without the compiled kernels: {error}")
        return None
    has_tiles = capability == "AVX512" and torch.cpu._is_amx_tile_supported()
    return Kernels(weights, quantizers, *(_with_tiles([*flags, *TILES]) if has_tiles else ()))


def _with_tiles(flags: Sequence[str]) -> tuple[ctypes.CDLL, ...]:
    """Those for processors with AMX; none where the compiler or the system does not know it."""
    try:
        found = (
            load_library(FOLDER / "products.cpp", ("tiles.h", "quantizer.h"), flags, PRODUCTS),
            load_library(FOLDER / "attention.cpp", ("tiles.h", "quantizer.h"), flags, ATTENTION),
        )
    except BuildError as error:
        logger.info(f"backward passes without AMX: {error}")
        return ()
    return found if found[0].vaq_request_tiles() else ()


def can_run(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the kernels exist, and take these tensors: contiguous, float32, on the CPU."""
    # Whoever wants nothing compiled, or cannot compile, gets nothing compiled.
    if torch.compiler.is_compiling() or compilation_failure() is not None:
        return False
    return all(tensor is None or _is_taken(tensor) for tensor in tensors) and kernels() is not None


def _is_taken(tensor: Tensor) -> bool:
    on_cpu = is_plain(tensor) and tensor.device.type == "cpu"
    return on_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()
