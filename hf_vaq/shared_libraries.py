"""C++ compiled once for this machine, kept in the cache folder of the Hugging Face libraries, and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
"""What every library is compiled with. OpenMP's functions are those that PyTorch has loaded, with its threads."""


class BuildError(RuntimeError):
    """A library cannot be had on this machine; the message says why."""


class Signature(NamedTuple):
    """Types of a function: of its result (None for none) and of its arguments, as ctypes has them."""

    result: Any
    arguments: Sequence[Any]


def load_library(
    source: Path, headers: Sequence[str], flags: Sequence[str], signatures: Mapping[str, Signature]
) -> ctypes.CDLL:
    """The library of a source file; compiled if these contents, flags and compiler are not in the cache.

    Args:
        source: file to compile.
        headers: names of the files beside it that it includes.
        flags: beyond `FLAGS`, those that choose the processor among them.
        signatures: of its functions, by name.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    compiler = _compiler()
    try:
        library = ctypes.CDLL(str(_build(compiler, source, headers, [*FLAGS, *flags])))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", "") or ""
        raise BuildError(f"{error} {output.strip()[-500:]}") from error
    for name, signature in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = signature
    return library


def _compiler() -> str:
    if os.name != "posix":
        raise BuildError("libraries are built on Linux and macOS only")
    named = os.environ.get("CXX")
    found = next((path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"no C++ compiler found ({', '.join(COMPILERS)}, or the variable CXX)")
    return found


def _build(compiler: str, source: Path, headers: Sequence[str], flags: Sequence[str]) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    contents = [source.with_name(name).read_text() for name in (source.name, *headers)]
    key = hashlib.sha256("\0".join([*contents, version, *flags]).encode()).hexdigest()[:16]
    folder = Path(constants.HF_HOME) / "hf_vaq"
    library = folder / f"{source.stem}-{key}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            built = Path(partial) / library.name
            command = [compiler, *flags, str(source), "-o", str(built)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            # Renamed when it is complete, so that several processes may build at once.
            built.replace(library)
    return library
