"""Run only the end of a model: the outputs of its first blocks come from an earlier pass over the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


class BlockReplay:
    """Keeps the outputs of the blocks of a model in one pass, and hands them out in others.

    Two settings of the quantizers that agree up to some block give the same outputs up to there, so the second pass
    may start after it. That halves the cost of asking every block and every head.

    Args:
        model: the model.
        blocks: module names of its blocks, in the order in which they are called.
        embeddings: module name of what runs before the blocks and need not run where the first block is skipped.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str], embeddings: str | None = None):
        first = [] if embeddings is None else [embeddings]
        self._modules = [model.get_submodule(name) for name in [*first, *blocks]]
        self._before = len(first)

    @contextmanager
    def recording(self) -> Iterator[list[Any]]:
        """Collect the outputs of embeddings and blocks, in order, in the list that is yielded."""
        outputs: list[Any] = []
        handles = [
            block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in self._modules
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def skipping(self, count: int, outputs: Sequence[Any]) -> Iterator[None]:
        """Let the first `count` blocks return what was recorded instead of computing it."""
        skipped = self._modules[: self._before + count] if count else []
        try:
            for block, output in zip(skipped, outputs, strict=False):
                block.forward = _returning(output)
            yield
        finally:
            for block in skipped:
                block.__dict__.pop("forward", None)


def _returning(output: Any) -> Any:
    return lambda *args, **kwargs: output
