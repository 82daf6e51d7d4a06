"""What is added to attention scores, in a model that is compiled as a whole: position biases and masks of windows.

They are small, and made by gathering and by integer arithmetic, which the compiler does not vectorize. Left to itself
it does not write them to memory, but makes them again for every element of every image, in each of the loops that read
the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn.traced import written

_MASK = "attention_mask"


def write_bias(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Forward hook of a relative position bias."""
    return written(output) if _is_trained() else None


def write_mask(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple | None:
    """Forward pre-hook of an attention whose second argument is a mask of windows, or none."""
    if not _is_trained():
        return None
    if len(args) > 1 and args[1] is not None:
        return (args[0], written(args[1]), *args[2:]), kwargs
    if kwargs.get(_MASK) is not None:
        return args, {**kwargs, _MASK: written(kwargs[_MASK])}
    return None


def _is_trained() -> bool:
    return torch.compiler.is_compiling() and torch.is_grad_enabled()
