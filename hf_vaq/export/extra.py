"""The packages that exporting needs beyond the package's own: the extras `onnx` and `openvino`."""

from __future__ import annotations

import importlib
from types import ModuleType

MODULES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each extra installs; torch's exporter needs onnxscript, and OpenVINO reads what it writes."""


def check_extra(extra: str) -> None:
    """Refuse to start where a package of an extra is missing.

    Raises:
        ValueError: naming the package and the extra to install.
    """
    for name in MODULES[extra]:
        load_extra(name, extra)


def load_extra(name: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Raises:
        ValueError: naming the package and the extra to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name!r} is not installed, which exporting to {extra} needs: pip install 'hf-vaq[{extra}]'."
        ) from error
