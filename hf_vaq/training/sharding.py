"""Training with FSDP2: what looks at whole weights sees whole weights, and computes what one process would.

`fully_shard` leaves every process a slice of each parameter and puts the whole one together around the forward and
backward pass of a block. Inside, fake quantization and the gradient factors of the scales see whole weights and need
nothing special. Everything here is for what happens outside: the regularizer, the oscillation tracker, the checks, and
saving. Scales and offsets are parameters as others are: the one element of a scale lies on the first process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from ..integration.quantizer import keep_parameter_names
from ..nn import weight_quantized_modules
from .oscillation import OscillationTracker
from .regularization import model_bin_regularizer
from .run_record import hand_on_run_record

if dist.is_available():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded `model`."""
    return dist.is_available() and isinstance(model, FSDPModule)


def check_parallelism(accelerator: Accelerator) -> None:
    """Refuse ways of distributing a model in which no process ever holds a whole weight under its name.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    fsdp, deepspeed = (getattr(accelerator.state, name, None) for name in ("fsdp_plugin", "deepspeed_plugin"))
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {fsdp.fsdp_version}; accepted: 2. Version 1 flattens the weights of a block into one"
            " parameter, in which a weight that is quantized cannot be told from others."
        )
    if fsdp is not None and fsdp.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true; accepted: false. Every process calibrates the model before it is"
            " sharded, and buffers (such as which quantizers are calibrated) are not sent from one to the others."
        )
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError("zero_stage is 3; accepted: 0, 1 and 2, which keep whole weights on every process, or FSDP2.")


def prepare_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    """Choose how FSDP2 shards `model`, before it does.

    - Weights and scales are gathered in float32 whatever the mixed precision is, which autocast takes care of: codes
      made of weights that were rounded to bfloat16 are other codes than those that are packed in the end, and a scale
      between 0.0003 and 0.02, its logarithm rounded so, is off by up to 1.6 %.
    - Units are the transformer blocks, unless the configuration names classes. (The list that transformers has for
      ViT, DeiT and DINOv2 holds the embeddings as well; accelerate then shards the patch embedding twice, and fails.)
    """
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = None
    if plugin.transformer_cls_names_to_wrap is None:
        names = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
        plugin.transformer_cls_names_to_wrap = sorted(names & set(model._no_split_modules or ())) or sorted(names)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Give the modules of `model` their whole parameters; nothing happens to a model that is not sharded.

    All processes have to enter together, and not between a forward and its backward pass. Changes are lost.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)] if is_sharded(model) else []
    if modules:
        # Without a forward pass before, nobody knows yet which of the modules is the outermost.
        model._get_fsdp_state()._lazy_init()
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


class UnshardedTracking(TrainerCallback):
    """Lets a tracker see the whole weights after each step; the state it keeps is the same on every process."""

    def __init__(self, tracker: OscillationTracker):
        self.tracker = tracker

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Hand on the event."""
        with unsharded(model):
            self.tracker.on_optimizer_step(args, state, control, model=model, **kwargs)


def add_regularizer_gradient_by_shards(model: nn.Module, factor: float) -> Tensor:
    """As `add_regularizer_gradient`, for a sharded model.

    Every process computes the regularizer of the whole weights, as one process alone does, and keeps the part of the
    gradient that belongs to its slices. In the loss it could not be: weights are gathered around the forward and the
    backward pass of their block, and gone when the loss is computed.

    Returns:
        The regularizer, without `factor`.
    """
    with unsharded(model):
        value = model_bin_regularizer(model)
        whole = [module.weight for _, module in weight_quantized_modules(model)]
        gradients = torch.autograd.grad(value, whole)
    for (_, module), gradient in zip(weight_quantized_modules(model), gradients, strict=True):
        weight = module.weight
        # All processes have the same values: each takes its slice, and nothing is sent.
        part = distribute_tensor(gradient * factor, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.grad = part if weight.grad is None else weight.grad + part
    return value.detach()


def gathered_model(model: PreTrainedModel, keep: bool) -> PreTrainedModel | None:
    """An ordinary model with the weights of a sharded one, on the CPU, in evaluation mode.

    All processes call this together; those that do not `keep` it get None.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if not keep or not state:
        return None
    plain = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    # As from a file: the configuration of the quantization is a dictionary there.
    config = type(model.config).from_dict(copy.deepcopy(model.config.to_dict()))
    gathered = plain.from_pretrained(None, config=config, state_dict=state)
    gathered.config._name_or_path = model.config._name_or_path
    keep_parameter_names(gathered)
    hand_on_run_record(model, gathered)
    return gathered.eval()


def whole_value(number: Any) -> Any:
    """A number that each process holds a share of, such as a gradient norm; anything else as it is."""
    return number.full_tensor() if dist.is_available() and isinstance(number, DTensor) else number


def local_part(tensor: Tensor) -> Tensor:
    """The slice of a sharded tensor that this process holds; any other tensor itself."""
    return tensor.to_local() if dist.is_available() and isinstance(tensor, DTensor) else tensor


def agreed(found: Any, model: nn.Module) -> Any:
    """What the first process found that found anything, of a sharded model; else `found` itself.

    Slices differ from process to process, and all of them have to stop for what is wrong with one.
    """
    if not is_sharded(model):
        return found
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    return next((item for item in everywhere if item is not None), None)
