"""The integer kernels of this CPU, if it can have them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from transformers.utils import logging

from ...shared_libraries import BuildError, Signature, load_library, warn_without

logger = logging.get_logger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
HEADERS = ("codes.h", "product.h", "attention.h", "layer.h")
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
FLAGS = ("-mfma", *(f"-m{name}" for name in INSTRUCTIONS))

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
ARGUMENTS = {
    "vaq_attention": (*[POINTER] * 8, FLOAT, INT, POINTER, INT),
    "vaq_quantize": (POINTER, LONG, FLOAT, FLOAT, INT, FLOAT, FLOAT, POINTER, INT),
    "vaq_step_codes": (POINTER, LONG, POINTER, POINTER, INT, POINTER, INT),
    "vaq_layer_norm_codes": (POINTER, LONG, LONG, POINTER, POINTER, FLOAT, FLOAT, FLOAT, FLOAT, POINTER, INT),
    "vaq_pack_weight": (POINTER, LONG, LONG, LONG, INT, POINTER, POINTER),
    "vaq_layer": (POINTER, POINTER, POINTER, POINTER, LONG, LONG, INT),
}
FIND_NAN = ("vaq_quantize", "vaq_step_codes", "vaq_layer_norm_codes")
"""Those that return whether they met NaN."""


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; everything works without them, slower."""
    if not (torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()):
        logger.info("integer execution without the compiled kernels: this CPU has no AVX-512 VNNI instructions")
        return None
    try:
        signatures = {
            name: Signature(INT if name in FIND_NAN else None, arguments) for name, arguments in ARGUMENTS.items()
        }
        return load_library(SOURCE, HEADERS, FLAGS, signatures)
    except BuildError as error:
        warn_without(error)
        return None
