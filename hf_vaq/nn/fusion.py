"""Whether the quantizers of a model are fused with the layers that they serve."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..numerics.compiled import is_plain
from ..numerics.fused import DTYPES

AUTOMATIC_FROM = 1 << 20
"""Quantized weights from which a model is fused if nobody says otherwise: compiling the kernels takes up to half a
minute where it was never done before (three seconds for float32 on a CPU, eight with AMX), more than a smaller model
can win back."""
INFERENCE_FROM = 1 << 18
"""Elements from which fused kernels are used where no gradient is wanted, and the result is the same without."""


def set_fusion(model: nn.Module, enabled: bool | None = None) -> bool:
    """Fuse the quantizers of `model`, in training form, with the layers that they serve, or do not.

    Fused, a training step takes less time and memory; the values are the same to the last bit, the gradients to
    rounding (sums are taken in another order). The kernels are compiled at their first use; where that is not possible
    they run as they are, and a warning says so. Inside a model that is compiled as a whole nothing changes: there the
    compiler fuses by itself.

    Args:
        model: a quantized model in training form, or a part of one.
        enabled: None means: if it has at least `AUTOMATIC_FROM` quantized weights. That is how models are made.

    Returns:
        What was chosen.

    Raises:
        ValueError: if `enabled` is something else, or `model` no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"hf_vaq.set_fusion(model): expected a quantized model, got {type(model).__name__}.")
    if enabled is not None and not isinstance(enabled, bool):
        raise ValueError(f"enabled={enabled!r}: expected True, False, or None (by the size of the model).")
    modules = [module for module in model.modules() if hasattr(module, "fused")]
    if enabled is None:
        weights = [module.weight for module in modules if isinstance(getattr(module, "weight", None), Tensor)]
        enabled = sum(weight.numel() for weight in weights) >= AUTOMATIC_FROM
    for module in modules:
        module.fused = enabled
    return enabled


def may_fuse(*tensors: Tensor) -> bool:
    """Whether fused kernels can compute on the tensors, the first of which is the largest, and are worth while."""
    if torch.compiler.is_compiling() or not all(can_compute_on(tensor) for tensor in tensors):
        return False
    return torch.is_grad_enabled() or tensors[0].numel() >= INFERENCE_FROM


def is_traced(tensor: Tensor) -> bool:
    """Whether a whole model is being compiled: it then takes the arithmetic of the kernels, which compiles well."""
    return torch.compiler.is_compiling() and can_compute_on(tensor)


def can_compute_on(tensor: Tensor) -> bool:
    """Whether the kernels can compute on the tensor at all."""
    return is_plain(tensor) and tensor.dtype in DTYPES and tensor.numel() > 0 and tensor.device.type != "meta"


def may_be_replaced(quantizer: nn.Module | None) -> bool:
    """Whether a function that does the work of a quantizer of activations may take the place of calling it."""
    replaceable = getattr(quantizer, "may_be_replaced", None)
    return replaceable is not None and replaceable()


def is_untouched(module: nn.Module) -> bool:
    """Whether calling `module` is calling its class's forward and nothing else: no hooks, no forward of its own."""
    return not (
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
