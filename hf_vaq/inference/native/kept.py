"""Memory that kernels read from call to call."""

from __future__ import annotations

import itertools
import weakref

from torch import Tensor

_numbers = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()


class Kept:
    """Owner of arrays that a kernel reads; it has a number by which an operator names it.

    Operators take tensors and numbers only, and the kernel of a layer reads two dozen arrays that never change.

    Attributes:
        number: see above.
        address: of the structure that the kernel takes; set by subclasses.
    """

    address: int

    def __init__(self):
        self.number = next(_numbers)
        _alive[self.number] = self
        self._memory: list[Tensor] = []

    def keep(self, x: Tensor | None) -> int | None:
        """The address of a contiguous copy that lives as long as this; None of None."""
        if x is None:
            return None
        x = x.detach().contiguous().clone()
        self._memory.append(x)
        return x.data_ptr()


def numbered(number: int) -> Kept:
    """What has this number.

    Raises:
        RuntimeError: if it is gone, with the model that it belonged to.
    """
    found = _alive.get(number)
    if found is None:
        raise RuntimeError("the layer that this operator belonged to is gone: compile the model anew.")
    return found
