"""Threads that work ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Pipeline:
    """Applies a function to items in order; threads work ahead, because decoding and resizing leave Python's lock."""

    def __init__(self, function: Callable[[Any], Any], num_workers: int):
        self._function = function
        self._ahead = num_workers + 1
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None

    def run(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results, in the order of the items."""
        if self._pool is None:
            yield from map(self._function, items)
            return
        waiting: deque = deque()
        for item in items:
            waiting.append(self._pool.submit(self._function, item))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
