"""What is computed from the tensors of a model and kept, until one of these tensors changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

_PREPARING = threading.RLock()
_version = attrgetter("_version")


class Sources:
    """The parameters and buffers of modules as they are now; `changed` says whether they still are.

    A tensor counts as changed if another one has its name, if it was written to (PyTorch counts that) or if its memory
    is another. Writes through `tensor.data` are not counted by PyTorch, and writes to a tensor that was made in
    inference mode neither.

    Args:
        modules: each with everything inside, but for what is itself derived.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        slots = [slot for module in modules for slot in _slots(module)]
        self._holders = [holder for holder, _ in slots]
        self._names = [name for _, name in slots]
        self._tensors = [holder[name] for holder, name in slots]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = list(map(_version, self._counted))
        self._places = list(map(Tensor.data_ptr, self._tensors))

    def changed(self) -> bool:
        """Whether one of the tensors is not what it was."""
        return not (
            all(map(is_, map(dict.get, self._holders, self._names), self._tensors))
            and list(map(_version, self._counted)) == self._versions
            and list(map(Tensor.data_ptr, self._tensors)) == self._places
        )


class Derived(nn.Module):
    """Base of modules that prepare something from the tensors of a model when they are first used.

    It is prepared anew when the tensors change or the model is copied, pickled or moved; by one thread, while others
    wait. A compiler takes it as it is when it traces.
    """

    _sources: Sources | None

    def __init__(self):
        super().__init__()
        self.reset()

    def sources(self, *owners: nn.Module) -> Iterable[nn.Module]:
        """The modules whose tensors are read, of those that own this one."""
        return owners

    def derive(self, *owners: nn.Module) -> None:
        """Prepare."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was prepared."""
        self._sources = None

    def prepare(self, *owners: nn.Module) -> None:
        """Prepare, unless what is prepared is right."""
        if not self.is_current():
            self._prepare(*owners)

    def is_current(self) -> bool:
        """Whether what is prepared is right."""
        return self._sources is not None and (torch.compiler.is_compiling() or not self._sources.changed())

    @torch.compiler.disable(reason="weights are prepared once: use hf_vaq.inference.compile_model")
    @torch.no_grad()
    def _prepare(self, *owners: nn.Module) -> None:
        with _PREPARING:
            if self.is_current():
                return  # another thread was first
            sources = Sources(self.sources(*owners))
            # Tensors made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                self.derive(*owners)
            self._sources = sources

    def _apply(self, fn: Callable, recurse: bool = True) -> Derived:
        self.reset()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Prepared weights have a layout of this very CPU, and another machine may have no kernel.
        return {**self.__dict__, "_sources": None}


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Where the tensors of `module` are held, and under which names; without those of what is derived."""
    for holder in (module._parameters, module._buffers):
        yield from ((holder, name) for name, tensor in holder.items() if tensor is not None)
    for child in module.children():
        if not isinstance(child, Derived):
            yield from _slots(child)


@torch.inference_mode(False)
def count_writes(model: nn.Module) -> None:
    """Replace tensors that were made in inference mode, whose writes PyTorch does not count, by ordinary copies."""
    for module in model.modules():
        for name, tensor in module._buffers.items():
            if tensor is not None and tensor.is_inference():
                module._buffers[name] = tensor.clone()
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
