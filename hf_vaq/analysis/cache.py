"""Results of finished work on disk, so that an analysis that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def digest(*contents: Any) -> str:
    """A name for tensors, state dictionaries, text and whatever JSON can hold: equal contents, equal name."""
    state = hashlib.blake2b(digest_size=16)
    for content in contents:
        _update(state, content)
    return state.hexdigest()


def _update(state: Any, content: Any) -> None:
    if isinstance(content, Tensor):
        state.update(f"{content.dtype}{tuple(content.shape)}".encode())
        state.update(content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values()):
        for name in sorted(content):
            state.update(name.encode())
            _update(state, content[name])
    else:
        state.update(json.dumps(content, sort_keys=True).encode())


class BatchCache:
    """One JSON file a batch in a folder; a file is complete or not there.

    Args:
        folder: made when it is first written to. Its name must tell all that the results depend on besides the batch.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, key: str) -> dict[str, Any]:
        """What is known of the batch `key`; empty if nothing is."""
        try:
            return json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def write(self, key: str, content: dict[str, Any]) -> None:
        """Replace what is known of the batch `key`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{key}.partial-{os.getpid()}"
        try:
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(self.folder / f"{key}.json")
        finally:
            partial.unlink(missing_ok=True)
