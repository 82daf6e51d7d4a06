"""Which integer matrix multiplication a device has."""

from __future__ import annotations

import torch

BACKENDS = {
    "onednn": "oneDNN, uint8 x int8",
    "int_mm": "torch._int_mm, int8 x int8",
}
"""Names of the backends, and what `model.execution` says of them."""


class IntegerUnsupportedError(RuntimeError):
    """Integer execution was asked for where it is not possible."""


def integer_backend(device: torch.device | str, wanted: str | None = None) -> tuple[str | None, str]:
    """The backend for `device`, and why there is none.

    Both backends accumulate in int32, so they give the same integers. On a CPU, oneDNN needs the VNNI or AMX
    instructions: without them its kernels are slower than floating point. On CUDA, int8 tensor cores exist from
    compute capability 7.5 on.

    Args:
        device: where the model is.
        wanted: a name in `BACKENDS` to use that one or none; None chooses.

    Returns:
        Name and an empty string, or None and the reason.

    Raises:
        ValueError: for an unknown backend.
    """
    if wanted is not None and wanted not in BACKENDS:
        raise ValueError(f"backend={wanted!r}: expected one of {', '.join(map(repr, BACKENDS))}, or None (automatic).")
    device = torch.device(device)
    if device.type == "cpu":
        if not has_integer_instructions():
            return None, "this CPU has neither VNNI nor AMX instructions"
        if wanted != "int_mm" and not torch.backends.mkldnn.is_available():
            return None, "this build of PyTorch has no oneDNN"
        return wanted or "onednn", ""
    if device.type == "cuda":
        if wanted == "onednn":
            return None, "the backend 'onednn' runs on CPUs only"
        if torch.version.hip is not None:
            return None, "torch._int_mm is not supported on this GPU (ROCm)"
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 5):
            return None, f"this GPU (compute capability {capability[0]}.{capability[1]}) has no int8 tensor cores"
        return "int_mm", ""
    return None, f"no integer matrix multiplication is known for {device.type!r} devices"


def has_integer_instructions() -> bool:
    """Whether this CPU multiplies 8-bit integers faster than floating-point numbers."""
    return bool(torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported())
