"""Choose how a packed model computes, and say how it does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers.utils import logging

from ..integration.families import ACTIVATION_OF, NORM_READERS, SHARED_INPUTS, has_windows
from ..nn import PackedActivationQuantizer, PackedConv2d, PackedLinear, PackedWeight, QuantConv2d, QuantLinear
from .attention import AttentionEngine, can_be_coded
from .backends import BACKENDS, IntegerUnsupportedError, integer_backend
from .calls import calls_of, watch_calls
from .codes import mark_nan
from .derived import count_writes
from .layers import Engine, LinearEngine, PatchEngine, SharedInputEngine, SliceEngine, cuts_patches
from .producers import CodedActivation, CodedLayerNorm, emit_codes, emit_numbers
from .whole_layers import run_modules, run_whole, runs_whole

logger = logging.get_logger(__name__)

EXECUTIONS = ("auto", "integer", "simulation")
ATTENTION_INPUTS = ("query", "key", "value")
_REQUEST = "_vaq_execution"  # on the model: what was asked for


def set_execution(model: PreTrainedModel, execution: str = "auto", *, backend: str | None = None) -> PreTrainedModel:
    """Choose how a packed model computes, in place; loading or packing one chooses "auto".

    Nothing is computed yet: int8 weights are prepared when the model is first used, again when what they are computed
    from was changed, and are never saved. A change through `tensor.data`, which PyTorch does not count, is seen after
    this call. Where other threads are calling the model, it waits for them to end and lets them go on afterwards.

    Args:
        model: a packed model.
        execution: "integer": matrix products of integer codes; "simulation": the float arithmetic of the training
            form, to the last bit; "auto": integer where the device of the model supports it, else simulation.
        backend: "onednn" or "int_mm" to use that one; None chooses by device.

    Returns:
        The same model. `model.execution` says in words how it computes on the device it is on.

    Raises:
        ValueError: if the model is not packed, or for an unknown name.
        IntegerUnsupportedError: "integer" on a device, or of a model, that has no integer form.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"execution={execution!r}: expected one of {', '.join(map(repr, EXECUTIONS))}.")
    if not any(isinstance(module, PackedWeight | PackedActivationQuantizer) for module in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} is not packed: execution={execution!r} is chosen for packed models, see"
            " hf_vaq.pack."
        )
    supported, reason = integer_backend(model.device, backend)
    if execution == "integer":
        if supported is None and model.device.type != "meta":
            raise IntegerUnsupportedError(f"execution='integer' is not possible: {reason}.")
        if not _integer_layers(model):
            raise IntegerUnsupportedError(
                "execution='integer' is not possible: no layer of this model has both a quantized weight and a"
                " quantized input."
            )
    if _REQUEST not in model.__dict__:
        model.register_forward_pre_hook(check_pixel_values, with_kwargs=True)
        model.register_forward_hook(mark_images_with_nan, with_kwargs=True)
        watch_calls(model)
    with calls_of(model).paused():
        count_writes(model)
        _remove_engines(model)
        if execution != "simulation":
            _add_engines(model, backend, required=execution == "integer")
        setattr(model, _REQUEST, (execution, backend))
    logger.info(f"{type(model).__name__} computes: {model.execution}")
    if execution == "auto" and supported is None and model.device.type != "meta":
        logger.info(f"no integer execution: {reason}")
    return model


def simulated_modules(model: nn.Module) -> list[str]:
    """Names of the quantized layers and attentions that are simulated in floating point, in the order of the model.

    They are those with a quantized weight but no quantized input or the reverse, and all of them where the device has
    no integer arithmetic or "simulation" was chosen.
    """
    _, backend = getattr(model, _REQUEST, ("simulation", None))
    possible = integer_backend(_device(model), backend)[0] is not None
    names = []
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight | QuantLinear | QuantConv2d):
            integer = getattr(module, "engine", None) is not None
        elif hasattr(module, "attention_quantizers"):
            integer = getattr(module, "attention_engine", None) is not None
        else:
            continue
        if not (integer and possible):
            names.append(name)
    return names


def prepare(model: nn.Module) -> None:
    """Prepare the int8 weights of all layers now, as the first forward pass would."""
    done: set[nn.Module] = set()
    for module in model.modules():
        if runs_whole(module):
            module.layer_engine.prepare(module)
            if module.layer_engine.kernel is not None:
                done.update(module.modules())
    modules = [module for module in model.modules() if module not in done]
    for module in modules:
        engine = getattr(module, "engine", None)
        if isinstance(engine, Engine):
            engine.prepare(module)
    for module in modules:
        if getattr(module, "attention_engine", None) is not None:
            module.attention_engine.prepare(module)
        if isinstance(module, CodedActivation):
            module.prepare()


def check_pixel_values(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of packed models: refuse pixels of a wrong type or shape.

    Raises:
        ValueError: naming what is wrong, and what is accepted.
    """
    pixels = pixel_values_of(args, kwargs)
    if pixels is None:
        return  # transformers says what is missing
    if not pixels.is_floating_point():
        raise ValueError(
            f"pixel_values has type {pixels.dtype}: expected floating-point pixels, normalized by the image processor."
        )
    channels = getattr(model.config, "num_channels", None)
    if pixels.dim() != 4 or 0 in pixels.shape or (channels is not None and pixels.shape[1] != channels):
        wanted = "channels" if channels is None else channels
        raise ValueError(
            f"pixel_values has shape {tuple(pixels.shape)}: expected (batch, {wanted}, height, width), none of them 0."
        )


def mark_images_with_nan(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of packed models: an image with NaN among its pixels has NaN for an answer.

    There is no code for NaN. On a CPU the engines see it in time; compilers and other devices cannot wait for that.
    """
    pixels = pixel_values_of(args, kwargs)
    if pixels is None or torch.compiler.is_exporting():
        return None
    if pixels.device.type == "cpu" and not torch.compiler.is_compiling():
        return None
    return marked(output, pixels)


def marked(output: Any, pixels: torch.Tensor) -> Any:
    """`output` of a model with NaN in the place of all numbers of images, (batch, ...), that hold NaN."""

    def mark(numbers: Any) -> Any:
        batched = isinstance(numbers, torch.Tensor) and numbers.dim() > 0 and len(numbers) == len(pixels)
        return mark_nan(numbers, pixels) if batched and numbers.is_floating_point() else numbers

    return tree_map(mark, output)


def pixel_values_of(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The pixels among the arguments of a model; None if there are none."""
    pixels = kwargs.get("pixel_values", args[0] if args else None)
    return pixels if isinstance(pixels, torch.Tensor) else None


def _add_engines(model: nn.Module, backend: str | None, required: bool) -> None:
    settings = {"backend": backend, "required": required}
    shared = {}
    for module in model.modules():
        for projections in _shared_projections(module):
            coded = can_be_coded(getattr(module, "attention_quantizers", None))
            attention = (module,) if coded and len(projections) == len(ATTENTION_INPUTS) else ()
            module.input_quantizer.engine = SharedInputEngine(projections, attention, **settings)
            total = sum(projection.shape[0] for projection in projections)
            start = 0
            for projection in projections:
                shared[projection] = SliceEngine(start, start + projection.shape[0], total)
                start += projection.shape[0]
        if can_be_coded(getattr(module, "attention_quantizers", None)):
            module.attention_engine = AttentionEngine(backend)
    for module in list(model.modules()):
        if module in shared:
            module.engine = shared[module]
        elif _has_integer_form(module):
            module.engine = (LinearEngine if isinstance(module, PackedLinear) else PatchEngine)(**settings)
    for module in list(model.modules()):
        _add_producers(module)
    for module in list(model.modules()):
        run_whole(module, backend)


def _add_producers(module: nn.Module) -> None:
    """Let the norms and activation functions of `module` hand codes to the layers that read them."""
    for name, readers in NORM_READERS.items():
        norm = getattr(module, name, None)
        if type(norm) is not nn.LayerNorm or (readers == ("attention",) and has_windows(module)):
            continue
        for reader in readers:
            owner = _coded_reader(operator.attrgetter(reader), module)
            if owner is not None:
                emit_codes(norm, *owner)
                break
    for reader, activation in ACTIVATION_OF.items():
        function, owner = getattr(module, activation, None), _coded_reader(operator.attrgetter(reader), module)
        if isinstance(function, nn.Module) and owner is not None:
            setattr(module, activation, CodedActivation(function, owner[0]))


def _coded_reader(
    get: Callable[[nn.Module], nn.Module], module: nn.Module
) -> tuple[nn.Module, PackedActivationQuantizer] | None:
    """Who holds the engine that takes codes, where `module` has such a reader, and the quantizer of those codes."""
    try:
        reader = get(module)
    except AttributeError:
        return None
    quantizer = getattr(reader, "input_quantizer", None)
    if not isinstance(quantizer, PackedActivationQuantizer):
        return None
    for owner in (reader, quantizer):
        if isinstance(getattr(owner, "engine", None), Engine):
            return owner, quantizer
    return None


def _remove_engines(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, PackedWeight | PackedActivationQuantizer):
            module.engine = None
        elif getattr(module, "attention_engine", None) is not None:
            del module.attention_engine
        elif isinstance(module, CodedLayerNorm):
            emit_numbers(module)
        elif runs_whole(module):
            run_modules(module)
        for activation in ACTIVATION_OF.values():
            if isinstance(getattr(module, activation, None), CodedActivation):
                setattr(module, activation, getattr(module, activation).function)


def _shared_projections(module: nn.Module) -> list[tuple[PackedLinear, ...]]:
    """Sets of packed projections of `module` that read its quantized input; all of a set, or the set is simulated."""
    if not isinstance(getattr(module, "input_quantizer", None), PackedActivationQuantizer):
        return []
    sets = [tuple(getattr(module, name, None) for name in names) for names in SHARED_INPUTS]
    return [layers for layers in sets if all(isinstance(layer, PackedLinear) for layer in layers)]


def _has_integer_form(module: nn.Module) -> bool:
    if not isinstance(module, PackedWeight) or module.input_quantizer is None:
        return False
    return isinstance(module, PackedLinear) or (isinstance(module, PackedConv2d) and cuts_patches(module))


def _integer_layers(model: nn.Module) -> bool:
    return any(_has_integer_form(module) or _shared_projections(module) for module in model.modules())


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _execution(model: PreTrainedModel) -> str:
    """How this packed model computes on the device it is on, in words."""
    if _REQUEST not in model.__dict__:
        raise AttributeError(f"{type(model).__name__} is not packed and has no attribute 'execution'.")
    request, backend = model.__dict__[_REQUEST]
    dtype = str(model.dtype).removeprefix("torch.")
    if request == "simulation" or not _integer_layers(model):
        return f"simulation ({dtype})"
    supported, reason = integer_backend(_device(model), backend)
    if supported is None:
        return f"simulation ({dtype}): {reason}"
    simulated = len(simulated_modules(model))
    some = f"; {simulated} modules in simulation" if simulated else ""
    return f"integer ({BACKENDS[supported]}{some})"


# Asked anew each time, because a model may have moved to another device since.
PreTrainedModel.execution = property(_execution)
