"""Checks of the numbers that a model holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import PackedActivationQuantizer, PackedWeight
from ..numerics.levels import integer_range

SMALLEST = torch.finfo(torch.float32).tiny
"""Below it numbers lose digits, or are zero, depending on the device."""


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and infinite values.

    Raises:
        ValueError: naming the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not _all_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{name!r} holds {bad} NaN or infinite values of {tensor.numel()}: the checkpoint is damaged, or its"
                " training diverged. Expected finite numbers."
            )


def check_packed_scales(model: nn.Module) -> None:
    """Refuse scales of a packed model that are not positive, or with which a code becomes infinite.

    Raises:
        ValueError: naming the scale, its value and what is accepted.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight):
            lowest, _ = integer_range(module.bits)
            _check_scale(f"{name}.weight_scale", module.weight_scale, -lowest, module.dtype)
        elif isinstance(module, PackedActivationQuantizer):
            codes = max(map(abs, integer_range(module.bits, module.signed)))
            # What is quantized never grows beyond itself and half a step, whatever its type.
            _check_scale(f"{name}.scale", module.scale, codes, torch.float32)
            if module.offset is not None and not _all_finite(module.scale * codes + module.offset.abs()):
                raise ValueError(
                    f"'{name}.offset' is too large: with codes up to {codes} it becomes infinite; the checkpoint is"
                    " damaged."
                )


def _check_scale(name: str, scale: Tensor, largest_code: int, dtype: torch.dtype) -> None:
    if scale.is_meta:
        return
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) / largest_code
    bad = scale[~((scale >= SMALLEST) & (scale <= largest))]
    if bad.numel():
        raise ValueError(
            f"{name!r} holds {bad[0].item():.4g}: expected scales from {SMALLEST:.3g} to {largest:.3g}, with which"
            f" codes up to {largest_code} stay finite in {str(dtype).removeprefix('torch.')}."
        )


def _all_finite(tensor: Tensor) -> bool:
    # The extremes are NaN if any value is, and need no tensor beside this one, as torch.isfinite does.
    return tensor.is_meta or tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
