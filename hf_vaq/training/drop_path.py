"""Stochastic depth for models that transformers defines without it, and a rate for those that have it."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers.modeling_layers import GradientCheckpointingLayer


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Drop branches of transformer blocks at random while training, with a probability that rises with depth.

    It rises linearly from 0 in the first block to `rate` in the last (Huang et al., "Deep Networks with Stochastic
    Depth", ECCV 2016). Swin, BEiT and DINOv2 have a place for it. In ViT and DeiT it follows the dropout that ends
    both branches of a block. Parameters, their names and the evaluation mode are not affected.

    Args:
        model: a Vision Transformer of transformers, quantized or not; changed in place.
        rate: from 0 to below 1.

    Raises:
        ValueError: if the model has no transformer blocks of the known form.
    """
    blocks = [
        block
        for block in model.modules()
        if isinstance(block, GradientCheckpointingLayer) and isinstance(getattr(block, "mlp", None), nn.Module)
    ]
    if not all(hasattr(block, "drop_path") or hasattr(block, "dropout") for block in blocks) or not blocks:
        raise ValueError(
            f"drop_path={rate}: {type(model).__name__} has no transformer blocks of a known form; expected ViT, DeiT,"
            " Swin, BEiT or DINOv2, or drop_path=None."
        )
    for index, block in enumerate(blocks):
        depth = StochasticDepth(rate * index / max(len(blocks) - 1, 1), mode="row").train(block.training)
        if hasattr(block, "drop_path"):
            block.drop_path = depth
            if type(block).__name__ == "SwinLayer":
                # transformers' Swin drops its attention branch only; the published one drops both.
                _drop_output(block.mlp, depth)
        else:
            dropout = block.dropout[0] if isinstance(block.dropout, nn.Sequential) else block.dropout
            block.dropout = nn.Sequential(dropout, depth)


def _drop_output(module: nn.Module, depth: StochasticDepth) -> None:
    if not hasattr(module, "stochastic_depth"):
        module.register_forward_hook(_dropped)
    module.stochastic_depth = depth


def _dropped(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return module.stochastic_depth(output)
