"""Compile a packed model with the settings that make it fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor import config as inductor
from transformers import PreTrainedModel

from . import gemm
from .execution import prepare


class CompiledModel:
    """A compiled packed model: called like the model, in inference mode; other attributes are the model's own."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        # The model does not change any more, so nothing of it has to be checked at each call: that took a millisecond.
        options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        self._compiled = torch.compile(model, fullgraph=True, dynamic=False, options=options)
        self._seen: set[tuple[torch.Size, ...]] = set()

    @torch.inference_mode()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns; the first call with a new shape of input compiles, for about a minute."""
        shapes = tuple(x.shape for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        if shapes not in self._seen:
            self.model(*args, **kwargs)  # prepares what depends on the size of the image
            self._seen.add(shapes)
        with _constant_weights():
            return self._compiled(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


def compile_model(model: PreTrainedModel) -> CompiledModel:
    """Compile a packed model for inference.

    `torch.compile(model)` alone works as well. This prepares the int8 weights beforehand, so that they are not part of
    what is traced, and treats all weights as constants (`freezing`), which lets the compiler rearrange them once.

    Args:
        model: a packed model, where it is to run; it must not change or move afterwards.

    Raises:
        ValueError: if the model is not packed.
    """
    if not hasattr(model, "execution"):
        raise ValueError(f"this {type(model).__name__} is not packed: see hf_vaq.pack.")
    model.eval()
    prepare(model)
    return CompiledModel(model)


@contextmanager
def _constant_weights() -> Iterator[None]:
    # Dynamo reads the setting when it traces; an option of torch.compile is seen by the backend only.
    before = inductor.freezing, gemm.frozen
    inductor.freezing = gemm.frozen = True
    try:
        yield
    finally:
        inductor.freezing, gemm.frozen = before
