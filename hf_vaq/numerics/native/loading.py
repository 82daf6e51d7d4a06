"""The kernels of this machine, if it has a C++ compiler, and the tensors that they take."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
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


class Kernels(NamedTuple):
    """Libraries: for all weights of a model at once, and for one quantizer."""

    weights: ctypes.CDLL
    quantizers: ctypes.CDLL


@cache
def kernels() -> Kernels | None:
    """The compiled kernels, or None where they cannot be had; everything works without them, slower."""
    flags = [f"-m{name}" for name in INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())]
    try:
        return Kernels(
            load_library(FOLDER / "weights.cpp", (), flags, WEIGHTS),
            load_library(FOLDER / "quantizers.cpp", (), [*flags, *SEPARATE_OPERATIONS], QUANTIZERS),
        )
    except BuildError as error:
        logger.info(f"quantizers, regularizer and oscillation tracker without the compiled kernels: {error}")
        return None


def can_run(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the kernels exist, and take these tensors: contiguous, float32, on the CPU."""
    # Whoever wants nothing compiled, or cannot compile, gets nothing compiled.
    if torch.compiler.is_compiling() or compilation_failure() is not None:
        return False
    return all(tensor is None or _is_taken(tensor) for tensor in tensors) and kernels() is not None


def _is_taken(tensor: Tensor) -> bool:
    on_cpu = is_plain(tensor) and tensor.device.type == "cpu"
    return on_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()
