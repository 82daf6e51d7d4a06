"""Compile a packed model with the settings that make it fast."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._inductor import config as inductor
from transformers import PreTrainedModel

from . import gemm
from .calls import Calls
from .derived import Sources
from .execution import check_pixel_values, marked, pixel_values_of, prepare

_CALLS = Calls()
"""Calls of all compiled models: models of a class share the code whose compiled forms the compiler looks up."""


class CompiledModel:
    """A compiled packed model: called like the model, in inference mode; other attributes are the model's own.

    Threads may call it side by side; while one of them compiles, the others wait.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        # The model does not change any more, so nothing of it has to be checked at each call: that took a millisecond.
        options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        # Its hooks are called here: each would be a graph of its own.
        self._compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, options=options)
        self._seen: set[tuple[int, tuple[torch.Size, ...]]] = set()  # threads, and shapes they called with
        self._sources = Sources([model])

    @torch.inference_mode()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns; the first call with a new shape of input compiles, for about a minute.

        Raises:
            RuntimeError: the model was changed since it was compiled.
        """
        if self._sources.changed():
            raise RuntimeError(
                f"this {type(self.model).__name__} was changed after compile_model, which took its weights for"
                " constants: compile it anew."
            )
        check_pixel_values(self.model, args, kwargs)
        shapes = tuple(x.shape for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        # The compiler compiles anew, too, where a thread differs from the one it traced in (its number of threads).
        known = threading.get_ident(), shapes
        output = self._call(args, kwargs) if known in self._seen else None
        if output is None:
            with _CALLS.paused():
                self.model(*args, **kwargs)  # prepares what depends on the size of the image
                with _constant_weights():
                    output = self._compiled(*args, **kwargs)
                self._seen.add(known)
        pixels = pixel_values_of(args, kwargs)
        # The sum is NaN if a pixel is; waiting for it costs nothing on a CPU.
        unmarked = pixels is None or (pixels.device.type == "cpu" and not pixels.sum().isnan())
        return output if unmarked else marked(output, pixels)

    def _call(self, args: tuple, kwargs: dict[str, Any]) -> Any | None:
        """What the compiled model returns; None if the compiler, seeing another state of the process, would not."""
        try:
            with _CALLS.one():
                return self._compiled(*args, **kwargs)
        except FailOnRecompileLimitHit:
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


def compile_model(model: PreTrainedModel) -> CompiledModel:
    """Compile a packed model for inference.

    `torch.compile(model)` alone works as well. This prepares the int8 weights beforehand, so that they are not part of
    what is traced, and treats all weights as constants (`freezing`), which lets the compiler rearrange them once.
    Every new shape of input is compiled by itself: give it few of them, by padding batches.

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
    # Dynamo reads these when it traces; options of torch.compile are seen by the backend only. Its limits count the
    # shapes of all models of a process together, and shapes beyond them would be an error.
    settings = {"recompile_limit": sys.maxsize, "accumulated_recompile_limit": sys.maxsize}
    with inductor.patch(freezing=True), dynamo.patch(settings):
        gemm.frozen = True
        try:
            yield
        finally:
            gemm.frozen = False
