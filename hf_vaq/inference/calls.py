"""Forward passes under way, so that a model changes how it computes between them and not inside one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_calls: weakref.WeakKeyDictionary[nn.Module, Calls] = weakref.WeakKeyDictionary()
_creating = threading.Lock()


class Calls:
    """The threads that are calling a model."""

    def __init__(self):
        self._condition = threading.Condition()
        self._changing = False
        self._running: set[threading.Thread] = set()

    def enter(self) -> None:
        """Begin a call; waits while the model changes."""
        with self._condition:
            self._condition.wait_for(lambda: not self._changing)
            self._running.add(threading.current_thread())

    def leave(self) -> None:
        """End a call."""
        with self._condition:
            self._running.discard(threading.current_thread())
            self._condition.notify_all()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A call, from beginning to end."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no other thread begin a call, and wait for those that have begun one."""
        with self._condition:
            self._changing = True
            try:
                # In steps, for a thread may have ended inside its call.
                while any(t.is_alive() for t in self._running if t is not threading.current_thread()):
                    self._condition.wait(0.1)
                yield
            finally:
                self._changing = False
                self._condition.notify_all()


def calls_of(model: nn.Module) -> Calls:
    """The calls of this model."""
    with _creating:
        return _calls.setdefault(model, Calls())


def watch_calls(model: nn.Module) -> None:
    """Count the calls of `model` from now on."""
    model.register_forward_pre_hook(_enter, prepend=True)
    model.register_forward_hook(_leave, always_call=True)


def _enter(model: nn.Module, args: tuple) -> None:
    if not torch.compiler.is_compiling():
        calls_of(model).enter()


def _leave(model: nn.Module, args: tuple, output: Any) -> None:
    if not torch.compiler.is_compiling():
        calls_of(model).leave()
