"""What operators of a compiled model take and return: tensors and numbers, and nothing that may be absent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..numerics.quantization import Quantization


def quantizations_from(numbers: Sequence[int], count: int) -> list[Quantization]:
    """`count` quantizations whose `numbers` follow each other."""
    length = len(numbers) // count
    return [Quantization.from_numbers(numbers[i : i + length]) for i in range(0, len(numbers), length)]


def as_projected(heads: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim), contiguous after dimensions 1 and 2 are exchanged."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    """`tensor`; for none, which an operator cannot return if it returns a tensor otherwise, one without elements."""
    return like.new_empty(0) if tensor is None else tensor


def like_gradient(parameter: Tensor | None, quantization: Quantization, like: Tensor) -> Tensor:
    """A tensor like the gradient of scales or offsets, or like that of none; in the type of `like`."""
    learned = parameter is not None and quantization.factor != "none"
    return like.new_empty(parameter.shape if learned else (0,))
