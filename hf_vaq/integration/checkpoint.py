"""Checks of what a checkpoint holds."""

from __future__ import annotations

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from ..nn import PackedActivationQuantizer, PackedWeight
from .plan import Plan


def check_packed_files(model: PreTrainedModel, files: list[str] | None) -> None:
    """Refuse a packed checkpoint that was cut short, or lacks a tensor, or has one of another shape.

    Only the headers are read. transformers would otherwise fill what is missing with random numbers.

    Args:
        model: skeleton of the packed model.
        files: its safetensors files; other files, or none, are not checked.

    Raises:
        ValueError: naming the file, and the tensor with both shapes.
    """
    found = _shapes(files)
    if not found:
        return
    prefix = f"{model.base_model_prefix}."
    for name, tensor in _packed_tensors(model).items():
        # A checkpoint of the bare model and one with a head differ by the prefix of the bare model.
        names = (name, prefix + name, name.removeprefix(prefix))
        shape = next((found[n] for n in names if n in found), None)
        if shape is None:
            raise ValueError(f"packed checkpoint {files[0]} lacks the tensor {name!r}.")
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"packed checkpoint {files[0]}: tensor {name!r} has shape {shape}, expected {tuple(tensor.shape)}."
            )


def leave_out_new_pooler(model: PreTrainedModel, plan: Plan, files: list[str] | None) -> None:
    """Take the pooler of a bare model out of `plan` if the checkpoint, being that of a classifier, has none.

    transformers then initialises it anew and says so, as with a full-precision checkpoint.
    """
    found = _shapes(files)
    if found and model.base_model is model and not any(".pooler." in f".{name}" for name in found):
        for layers in (plan.weights, plan.inputs):
            for name in [name for name in layers if name.startswith("pooler.")]:
                del layers[name]


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and infinite values.

    Raises:
        ValueError: naming the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not _all_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{name!r} holds {bad} NaN or infinite values of {tensor.numel()}: the checkpoint is damaged, or its"
                " training diverged. Expected finite numbers."
            )


def _all_finite(tensor: torch.Tensor) -> bool:
    # The extremes are NaN if any value is, and need no tensor beside this one, as torch.isfinite does.
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _shapes(files: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in safetensors files; empty for other files, and for none."""
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as checkpoint:
                found |= {name: tuple(checkpoint.get_slice(name).get_shape()) for name in checkpoint.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is cut short or damaged ({error}): copy or download it again.") from error
    return found


def _packed_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, module in model.named_modules()
        if isinstance(module, PackedWeight | PackedActivationQuantizer)
        for key, tensor in module.state_dict(keep_vars=True).items()
        if "." not in key
    }
