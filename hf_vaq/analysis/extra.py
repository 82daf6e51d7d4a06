"""What the analyses need beyond the package's own dependencies: the extra `analysis`."""

from __future__ import annotations

import importlib
from types import ModuleType


def load_extra(module: str) -> ModuleType:
    """Import a module of the extra `analysis`.

    Raises:
        ValueError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name!r} is not installed, which hf_vaq.analysis needs: pip install 'hf-vaq[analysis]'."
        ) from error
