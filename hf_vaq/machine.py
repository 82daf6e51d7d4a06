"""The machine: where something runs, and where it was measured (processor, threads, accelerator, versions)."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
"""What Linux says of the processor."""
PACKAGES = ("hf-vaq", "torch", "torchvision", "transformers", "accelerate", "datasets", "evaluate")


def machine() -> dict[str, Any]:
    """Return processor, cores, threads, accelerator, and the versions of Python and of the packages that matter."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return `device`; of None, an accelerator where there is one, otherwise the CPU."""
    import torch

    return torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")


def processor_vendor() -> str:
    """Return who made the processor, as it says itself ("GenuineIntel", "AuthenticAMD"); "" where it does not."""
    named = _cpuinfo("vendor_id")
    if named is None and "GenuineIntel" in platform.processor():  # as Windows describes it
        return "GenuineIntel"
    return named or ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str | None:
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)
