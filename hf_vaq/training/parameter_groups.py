"""Parameter groups: quantizer scales learn at a rate of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..nn import quantizer_parameter_names


def split_scale_groups(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Move scales and offsets of quantizers to a parameter group of their own, without weight decay.

    Its other options are those of the group they come from.

    Args:
        optimizer: one that has made no step.
        model: owner of the parameters.
        learning_rate: of the new group.
    """
    names = quantizer_parameter_names(model)
    scales = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    taken: list[nn.Parameter] = []
    options: dict[str, Any] = {}
    for group in optimizer.param_groups:
        mine = [p for p in group["params"] if id(p) in scales]
        if mine:
            group["params"] = [p for p in group["params"] if id(p) not in scales]
            options = {key: value for key, value in group.items() if key != "params"}
            taken += mine
    if taken:
        optimizer.add_param_group({**options, "params": taken, "lr": learning_rate, "weight_decay": 0.0})
