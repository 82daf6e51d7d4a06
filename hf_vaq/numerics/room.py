"""Temporary tensors that leave no useless holes in memory.

The C library's allocator aligns a block by asking itself for a slightly larger one. So the hole that a freed tensor
leaves between two others is too small for the next tensor of the same size, and a forward pass, which allocates
temporary and kept tensors of few sizes in turn, would scatter holes that nothing fills until the backward pass ends.
A temporary tensor that is a little larger than the kept ones leaves a hole that one of those fills.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .compiled import compilation_failure, runs_plain

ROOM = 8192
"""Bytes more than the tensor needs: more than alignment takes (64 and a few), and little beside the tensor."""
FROM = 1 << 17
"""Bytes from which a tensor gets room: smaller ones are many, and leave small holes."""


def has_room(device: torch.device) -> bool:
    """Whether kernels should write into tensors made by `empty_with_room`."""
    # Uncompiled kernels cannot write into a given tensor without making another one first.
    uncompiled = runs_plain() or compilation_failure() is not None
    return device.type == "cpu" and not uncompiled and not torch.compiler.is_compiling()


def empty_with_room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor in main memory, not filled, for values that are not kept."""
    elements, size = prod(shape), dtype.itemsize
    if elements * size < FROM:
        return torch.empty(shape, dtype=dtype)
    return torch.empty(elements + ROOM // size, dtype=dtype).resize_(shape)  # which leaves the storage as it is
