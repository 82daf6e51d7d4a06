"""The few facts that differ between model families, or that all of them share."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

SUPPORTED = ("beit", "deit", "dinov2", "swin", "vit")
"""Values of `config.model_type` whose attention can be quantized; each is tested."""

# Sets of layers inside one module that all read the module's own input: it is quantized once, for all of them.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Projections whose rows or columns belong to attention heads, and the dimension of the weight that the heads divide.
HEAD_DIMENSION = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
# The second MLP layer reads GELU's output: bounded below, long above, so unsigned codes with an offset suit it.
AFTER_GELU = ("fc2",)
# Layer norms whose output has one reader: that reader, seen from the module that holds the norm. The first of a window
# attention is not among them, because its output is padded and cut into windows on the way.
NORM_READERS = {
    "layernorm_before": ("attention",),
    "norm1": ("attention",),
    "layernorm_after": ("mlp.fc1", "mlp"),
    "norm2": ("mlp.fc1", "mlp"),
    "norm": ("reduction",),
}
# The two layer norms of a transformer layer: before the attention, and before the linear layers.
LAYER_NORMS = (("layernorm_before", "layernorm_after"), ("norm1", "norm2"))
# Layers that read an activation function, and what that is called beside them.
ACTIVATION_OF = {"fc2": "activation_fn"}
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj")


def check_supported(model: PreTrainedModel, quantize_attention: bool) -> None:
    """Refuse an architecture whose attention cannot be quantized.

    Raises:
        ValueError: naming the architecture, the supported ones and the way out.
    """
    model_type = model.config.model_type
    if quantize_attention and model_type not in SUPPORTED:
        raise ValueError(
            f"{type(model).__name__} (model_type {model_type!r}) is not supported; quantized attention is known for"
            f" {', '.join(SUPPORTED)}. QuantConfig(quantize_attention=False) quantizes the linear layers of any model."
        )


def is_attention(module: nn.Module) -> bool:
    """Whether `module` is self-attention in the form that all supported families share."""
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in HEAD_DIMENSION)


def residual_factors(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """What a transformer layer multiplies its attention and its MLP by, before it adds them: one factor a channel.

    None where there is none, as in ViT, DeiT and Swin.
    """
    if hasattr(layer, "layer_scale1"):
        return layer.layer_scale1.lambda1, layer.layer_scale2.lambda1
    factors = (getattr(layer, "lambda_1", None), getattr(layer, "lambda_2", None))
    return tuple(factor if isinstance(factor, Tensor) else None for factor in factors)


def has_windows(layer: nn.Module) -> bool:
    """Whether the attention of a transformer layer works on windows of the image."""
    return hasattr(layer, "window_size")


def is_edge(model: PreTrainedModel, name: str) -> bool:
    """Whether the layer `name` is not a layer of a transformer block: first, last, or between the stages of Swin."""
    if model.config.model_type in SUPPORTED:
        return name.rpartition(".")[2] not in BLOCK_LINEARS
    return bool(model.base_model_prefix) and not name.startswith(f"{model.base_model_prefix}.")


def is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether the parameter `name` comes after the encoder: in a head, or in the pooler of a model without one."""
    if model.base_model is model:
        return name.startswith("pooler.")
    return not name.startswith(f"{model.base_model_prefix}.")


def is_patch_embedding(name: str) -> bool:
    """Whether the convolution `name` cuts the image into patches: the first layer."""
    return name.endswith("patch_embeddings.projection")
