"""Compile the kernels for this CPU once, keep them in the cache folder of the Hugging Face libraries, load them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers.utils import logging

logger = logging.get_logger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
HEADERS = ("codes.h", "product.h", "attention.h", "layer.h")
COMPILERS = ("g++", "clang++", "c++")
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-mfma", *(f"-m{name}" for name in INSTRUCTIONS))

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
SIGNATURES = {
    "vaq_attention": (*[POINTER] * 8, FLOAT, INT, POINTER, INT),
    "vaq_quantize": (POINTER, LONG, FLOAT, FLOAT, INT, FLOAT, FLOAT, POINTER, INT),
    "vaq_step_codes": (POINTER, LONG, POINTER, POINTER, INT, POINTER, INT),
    "vaq_layer_norm_codes": (POINTER, LONG, LONG, POINTER, POINTER, FLOAT, FLOAT, FLOAT, FLOAT, POINTER, INT),
    "vaq_pack_weight": (POINTER, LONG, LONG, LONG, INT, POINTER, POINTER),
    "vaq_layer": (POINTER, POINTER, POINTER, POINTER, LONG, LONG, INT),
}


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; everything works without them, slower."""
    reason = _unsupported()
    if reason is None:
        try:
            return _load(_build())
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", "") or ""
            reason = f"{error} {output.strip()[-500:]}"
    logger.info(f"integer execution without the compiled kernels: {reason}")
    return None


def _unsupported() -> str | None:
    """Why this machine cannot have the kernels."""
    if not (torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()):
        return "this CPU has no AVX-512 VNNI instructions"
    if os.name != "posix":
        return "they are built on Linux and macOS only"
    if _compiler() is None:
        return f"no C++ compiler found ({', '.join(COMPILERS)}, or the variable CXX)"
    return None


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next((path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))), None)


def _build() -> Path:
    """The shared library of this source, these flags and this compiler; built if it is not in the cache."""
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = [SOURCE.with_name(name).read_text() for name in (SOURCE.name, *HEADERS)]
    key = hashlib.sha256("\0".join([*sources, version, *FLAGS]).encode()).hexdigest()[:16]
    folder = Path(constants.HF_HOME) / "hf_vaq"
    library = folder / f"kernels-{key}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            built = Path(partial) / library.name
            subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, text=True, check=True
            )
            # Renamed when it is complete, so that several processes may build at once.
            built.replace(library)
    return library


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
