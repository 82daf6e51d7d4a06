"""Stop a training run that diverges, and say where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import agreed, is_sharded, local_part


class NonFiniteError(FloatingPointError):
    """Loss, gradients or weights became NaN or infinite. Raised before the optimizer step, and before saving."""


@torch.no_grad()
def first_non_finite_module(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Run `model` on `inputs` again and name the first module, in order of execution, whose output is not finite.

    Modules inside others finish first, so the innermost is named. The run is in the model's present mode; where it
    draws random numbers (dropout) it may differ from the run that failed.

    Returns:
        "'name' (class)", or None if all outputs are finite.
    """
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and any(not torch.isfinite(tensor).all() for tensor in _tensors(output)):
                found.append(f"{name!r} ({type(module).__name__})" if name else f"the whole {type(module).__name__}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_non_finite_tensor(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer of `model` with a NaN or infinite value, with the number of them.

    Of a sharded model only the slices of this process are looked at.
    """
    for name, tensor in model.state_dict().items():
        tensor = local_part(tensor)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"{name!r} ({int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values)"
    return None


def check_gradients(model: nn.Module, step: int) -> None:
    """Refuse NaN and infinite gradients, before clipping spreads them over all parameters.

    Raises:
        NonFiniteError: naming the first parameter and `step`.
    """
    where = agreed(_non_finite_gradient(model), model)
    if where is None:
        return
    raise NonFiniteError(
        f"gradients are not finite at step {step}: {where}. Training stops before this step changes the model; the"
        " newest checkpoint is good. A lower learning rate or a smaller max_grad_norm may help."
    )


def _non_finite_gradient(model: nn.Module) -> str | None:
    gradients = {name: local_part(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    # One number to look at, so that a GPU is waited for once.
    if not gradients or torch.isfinite(torch.nn.utils.get_total_norm(list(gradients.values()))):
        return None
    first = next((name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()), None)
    return "their norm overflows" if first is None else f"first that of {first!r}"


def describe_non_finite_loss(
    model: nn.Module, inputs: Mapping[str, Any], terms: Mapping[str, Tensor], teacher_logits: Tensor | None, step: int
) -> NonFiniteError:
    """The error for a loss that is not finite: names the culprit among images, teacher, modules and terms.

    Args:
        model: the student, not wrapped.
        inputs: what it was called with.
        terms: the terms of the loss, scalars, by name.
        teacher_logits: of the same images.
        step: number of finished optimizer steps.
    """
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    weights = first_non_finite_tensor(model)
    if any(not torch.isfinite(tensor).all() for tensor in _tensors(inputs)):
        where = "the images of the batch (pixel_values) hold NaN or infinite values"
    elif teacher_logits is not None and not torch.isfinite(teacher_logits).all():
        where = "the logits of the teacher are not finite"
    elif is_sharded(model):
        # The other processes would have to run it as well, and their losses may be finite.
        where = "the images and the teacher are finite"
    else:
        module = first_non_finite_module(model, inputs)
        where = "all modules have finite outputs" if module is None else f"first at the output of module {module}"
    if weights is not None:
        where += f"; not finite among the weights, first: {weights}"
    return NonFiniteError(
        f"the training loss is not finite at step {step} ({values}): {where}. Training stops before this step changes"
        " the model; the newest checkpoint is good."
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
