"""Small functions on tensors compiled by `torch.compile`, with the plain function as fallback."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

_failure: str | None = None
_plain = False


def compilation_failure() -> str | None:
    """Why `torch.compile` is not used in this process: its message; None as long as it has not failed."""
    return _failure


def runs_plain() -> bool:
    """Whether the plain functions were asked for (`uncompiled`), in place of every kernel, native ones too."""
    return _plain


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is what its storage holds. A shard of a parameter (DTensor), say, is something else."""
    return type(tensor) is Tensor or type(tensor) is nn.Parameter


class CompiledKernel:
    """A function of tensors that is compiled at its first use, once for each combination of types and options.

    Sizes are dynamic, so that batches of another size (the last of an epoch, those of an evaluation) run the same
    code. Every combination gets a code object of its own, because Dynamo counts recompilations by code object and
    gives up after eight. Inside a function that is being compiled itself it becomes part of that. Where nothing can be
    compiled (no C++ compiler, on a GPU no Triton) the function runs as it is, which is logged once; the results are
    the same to rounding.

    Args:
        function: takes tensors (or None), then options that are part of the program; no closure, no side effects.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._variants: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, tensors: tuple[Tensor | None, ...], options: tuple[Hashable, ...] = ()) -> Any:
        """Run on `tensors`, without recording gradients, with the given `options`."""
        if torch.compiler.is_compiling():
            return self.function(*tensors, *options)
        device = tensors[0].device.type
        # Modes that mean nothing to the kernels are switched off: each would be compiled for.
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(tensors, options)
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self(tensors, options)
        if _plain or _failure is not None:
            return self.function(*tensors, *options)
        key = (options, *[None if t is None else (t.dtype, t.dim(), t.is_inference(), t.device.type) for t in tensors])
        variant = self._variants.get(key)
        if variant is not None:
            return variant(*tensors, *options)
        return self._first_call(key, tensors, options)

    def _first_call(self, key: Hashable, tensors: tuple[Tensor | None, ...], options: tuple[Hashable, ...]) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        name = f"{self.function.__name__}_{len(self._variants)}"
        code = self.function.__code__.replace(co_name=name)
        variant = torch.compile(
            types.FunctionType(code, self.function.__globals__, name), dynamic=True, fullgraph=True
        )
        try:
            result = variant(*tensors, *options)
        except (TorchDynamoException, RuntimeError, OSError, ImportError) as error:
            # The plain function first: an error that is not the compiler's must not be taken for one.
            result = self.function(*tensors, *options)
            _give_up(error)
            return result
        self._variants[key] = variant
        return result


def _give_up(error: BaseException) -> None:
    global _failure
    _failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    logger.warning(
        "Quantizers run as separate operations because torch.compile does not work here: training steps take longer,"
        " see docs/training_speed.md. The results are the same to rounding. A C++ compiler (g++ or clang) is"
        f" what it needs on a CPU, Triton on a GPU. The first error was {_failure}"
    )


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run the plain functions while the context lasts, as where there is no compiler at all."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before
