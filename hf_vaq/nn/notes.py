"""Notes on tensors: where their values come from, as long as nobody has written to them since."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def note(x: Tensor, name: str, value: Any, *sources: Tensor) -> None:
    """Note `value` on `x`; it stands until `x`, or one of the tensors it was computed from, is changed in place.

    A compiler cannot look at versions: while it traces, notes are left and read only where no hook comes between.
    """
    tensors = (x, *sources)
    setattr(x, name, (value, sources, _versions(tensors)))


def noted(x: Tensor, name: str) -> Any:
    """What was noted on `x`, or None if nothing was or it stands no more."""
    found = getattr(x, name, None)
    if found is None:
        return None
    value, sources, versions = found
    return value if _versions((x, *sources)) == versions else None


def _versions(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return () if torch.compiler.is_compiling() else tuple(tensor._version for tensor in tensors)
