"""The kernels of this machine, if it has a C++ compiler."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from transformers.utils import logging

from ...shared_libraries import BuildError, Signature, load_library

logger = logging.get_logger(__name__)

SOURCE = Path(__file__).with_name("weights.cpp")
INSTRUCTIONS = {
    "AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"),
    "AVX2": ("avx2", "fma"),
}
"""By PyTorch's name of what the CPU is capable of; others get what every processor of their kind has."""

POINTER, LONG, INT, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double
SIGNATURES = {
    "vaq_bin_regularizer": Signature(DOUBLE, (POINTER, LONG, DOUBLE, INT)),
    "vaq_pass_quantizer": Signature(None, (POINTER, POINTER, POINTER, INT)),
    "vaq_count_oscillations": Signature(None, (POINTER, LONG, FLOAT, INT, INT, INT)),
}


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; everything works without them, slower."""
    flags = [f"-m{name}" for name in INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())]
    try:
        return load_library(SOURCE, (), flags, SIGNATURES)
    except BuildError as error:
        logger.info(f"regularizer and oscillation tracker without the compiled kernels: {error}")
        return None
