"""C++ compiled once for this machine, kept in the cache folder of the Hugging Face libraries, and loaded."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants
from transformers.utils import logging

from .files import flush_folder, write_problem

logger = logging.get_logger(__name__)

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
"""What every library is compiled with. OpenMP's functions are those that PyTorch has loaded, with its threads."""
TIMEOUT = 600
"""Seconds that a compiler may take."""


class BuildError(RuntimeError):
    """A library cannot be had on this machine; the message says why."""


class Signature(NamedTuple):
    """Types of a function: of its result (None for none) and of its arguments, as ctypes has them."""

    result: Any
    arguments: Sequence[Any]


def load_library(
    source: Path, headers: Sequence[str], flags: Sequence[str], signatures: Mapping[str, Signature]
) -> ctypes.CDLL:
    """The library of a source file; compiled if these contents and flags are not in the cache, whole and ours.

    Args:
        source: file to compile.
        headers: names of the files beside it that it includes.
        flags: beyond `FLAGS`, those that choose the processor among them.
        signatures: of its functions, by name.

    Raises:
        BuildError: if it is not in the cache and there is no compiler, or it fails, or the result cannot be loaded.
    """
    if os.name != "posix":
        raise BuildError("libraries are built on Linux and macOS only")
    flags = [*FLAGS, *flags]
    contents = [source.with_name(name).read_text() for name in (source.name, *headers)]
    abi = [sys.platform, platform.machine(), *platform.libc_ver()]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join([*contents, *abi, *flags]).encode()).hexdigest()[:16]}.so"
    for folder in _places():
        try:
            _check_owner(folder)
            library = folder / name
            if not _is_whole(library):
                _build(source, flags, library)
            loaded = ctypes.CDLL(str(library))
            break
        except OSError as error:  # not writable, full, not ours, or mounted noexec
            problem = error
            logger.warning_once(f"Compiled kernels cannot be kept in {folder}: {error}")
    else:
        raise BuildError(f"{source.name}: {problem}") from problem
    for function_name, signature in signatures.items():
        function = getattr(loaded, function_name)
        function.restype, function.argtypes = signature
    return loaded


def warn_without(error: BuildError) -> None:
    """Say once what the lack of a library costs, and how to get it."""
    logger.warning_once(
        f"Some native kernels are missing, so training or integer execution is slower here: {error}. They need a C++"
        " compiler (g++ or clang++, or the variable CXX) or a cache folder that holds them; see docs/deployment.md"
    )


def _places() -> Iterator[Path]:
    folder = Path(constants.HF_HOME) / "hf_vaq"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o022:
            folder.chmod(stat.S_IMODE(status.st_mode) & ~0o022)  # made by us where the umask let others write
    except OSError as error:
        logger.warning_once(f"Compiled kernels cannot be kept in {folder}: {error}")
    else:
        yield folder
    yield _private_folder()


@cache
def _private_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="hf_vaq-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _check_owner(path: Path) -> None:
    """Raise PermissionError if another user may have written a file or folder, or it is a symbolic link."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
        raise PermissionError(f"{path} must belong to this user or root, be writable by nobody else, and be no link")


def _is_whole(library: Path) -> bool:
    """Whether a library is there, nobody else's, and of the size and hash that were written beside it."""
    record = _record(library)
    try:
        _check_owner(library)
        _check_owner(record)
        return record.read_text() == _fingerprint(library)
    except (FileNotFoundError, PermissionError, UnicodeDecodeError):
        return False


def _record(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _fingerprint(library: Path) -> str:
    contents = library.read_bytes()
    return f"{len(contents)} {hashlib.sha256(contents).hexdigest()}\n"


def _compiler() -> list[str]:
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']!r}: {error}") from error
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler found ({shlex.join(named) or ', '.join(COMPILERS)})")


def _build(source: Path, flags: Sequence[str], library: Path) -> None:
    compiler = _compiler()
    # Renamed when it is complete, so that several processes may build at once.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=library.parent) as partial:
        built = Path(partial) / library.name
        try:
            command = [*compiler, *flags, str(source), "-o", str(built)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        except subprocess.SubprocessError as error:
            if problem := write_problem(library.parent):
                raise OSError(problem) from error
            output = str(getattr(error, "stderr", None) or error).strip().splitlines()
            raise BuildError(f"{shlex.join(compiler)} failed on {source.name}: {output[-1]}") from error
        built.chmod(0o755)
        _record(built).write_text(_fingerprint(built))
        _record(built).chmod(0o644)
        flush_folder(Path(partial))
        built.replace(library)
        _record(built).replace(_record(library))
