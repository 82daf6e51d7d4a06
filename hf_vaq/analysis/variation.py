"""Variation: how unequal the weights and activations of a model are, within modules and between them.

Source: section 4 of "Quantization Variation" (arXiv 2307.00331), which finds more of it in transformers than in CNNs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..integration.families import HEAD_DIMENSION, is_attention, is_patch_embedding
from ..machine import choose_device
from ..nn import PackedWeight
from .moments import Moments, Spread
from .preparing import batches_of

if TYPE_CHECKING:
    import pandas

WEIGHT, INPUT, OUTPUT = "weight", "input", "output"
TRANSFORMER, CNN, OTHER = "transformer", "CNN", "other"
_ROLE_KIND = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention output",
    "fc1": "ffn",
    "fc2": "ffn",
    "gate_proj": "ffn",
    "up_proj": "ffn",
    "down_proj": "ffn",
}


@dataclass(frozen=True)
class VariationRow:
    """One tensor of one module.

    Attributes:
        model: name of the model.
        architecture: `TRANSFORMER` (it has attention), `CNN` or `OTHER`.
        module: name of the layer.
        kind: "query", "ffn", "convolution", ...
        depth: position among the layers of the model, from 0 (first) to 1 (last).
        tensor: `WEIGHT`; `INPUT` of the layer; or `OUTPUT`, of the query, key and value projections only.
        spread: the statistics.
    """

    model: str
    architecture: str
    module: str
    kind: str
    depth: float
    tensor: str
    spread: Spread


@dataclass(frozen=True)
class VariationResult:
    """What `analyze_variation` measured.

    Attributes:
        rows: layer by layer, model by model.
        images: number of images that activations come from, by model; 0 for weights alone.
    """

    rows: tuple[VariationRow, ...]
    images: dict[str, int]

    def table(self) -> pandas.DataFrame:
        """One line a tensor."""
        import pandas

        lines = []
        for row in self.rows:
            line = dataclasses.asdict(row)
            spread = line.pop("spread")
            lines.append(line | spread)
        return pandas.DataFrame(lines)

    def summary(self) -> pandas.DataFrame:
        """One line a model and tensor.

        - `sdam`, `relative_sdam`, `head_spread`: means over modules;
        - `module_spread`: standard deviation over modules of the mean magnitude, over its mean;
        - `kurtosis`, `max_over_std`: medians over modules; `largest_kurtosis`, `largest_max_over_std`: the largest.
        """
        import pandas

        lines = []
        for (model, architecture, tensor), part in self.table().groupby(
            ["model", "architecture", "tensor"], sort=False
        ):
            lines.append(
                {
                    "model": model,
                    "architecture": architecture,
                    "tensor": tensor,
                    "modules": len(part),
                    "sdam": part["sdam"].mean(),
                    "relative_sdam": part["relative_sdam"].mean(),
                    "module_spread": part["mean_abs"].std(ddof=0) / part["mean_abs"].mean(),
                    "kurtosis": part["kurtosis"].median(),
                    "largest_kurtosis": part["kurtosis"].max(),
                    "max_over_std": part["max_over_std"].median(),
                    "largest_max_over_std": part["max_over_std"].max(),
                    "head_spread": part["head_spread"].astype(float).mean(),
                }
            )
        return pandas.DataFrame(lines)


def analyze_variation(
    models: Mapping[str, PreTrainedModel],
    images: Mapping[str, Dataset] | None = None,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> VariationResult:
    """Measure the spread of the weights of every linear and convolutional layer, and of their activations.

    Args:
        models: by name; of any architecture, in full precision or in training form (latent weights are measured).
        images: by the name of the model, examples with "pixel_values"; weights alone if not given.
        batch_size: images a forward pass.
        device: where activations are computed; None takes an accelerator where there is one, otherwise the CPU.
        progress: whether to show progress bars on stderr.

    Raises:
        ValueError: a model is packed or has no such layer, or a dataset is empty.
    """
    rows: list[VariationRow] = []
    for name, model in models.items():
        _check_latent_weights(name, model)
    for name, model in models.items():
        layers = _layers(model)
        if not layers:
            raise ValueError(f"{name} ({type(model).__name__}) has no linear or convolutional layer to analyze.")
        architecture = architecture_of(model)
        spreads = {(layer, WEIGHT): _weight_spread(model, layer, module) for layer, module in layers.items()}
        if images is not None:
            spreads |= _activation_spreads(name, model, layers, images[name], batch_size, device, progress)
        for index, (layer, module) in enumerate(layers.items()):
            for tensor in (WEIGHT, INPUT, OUTPUT):
                if (layer, tensor) in spreads:
                    depth = index / max(len(layers) - 1, 1)
                    kind = _kind(layer, module, last=index == len(layers) - 1)
                    rows.append(VariationRow(name, architecture, layer, kind, depth, tensor, spreads[layer, tensor]))
    counts = {name: len(images[name]) if images is not None else 0 for name in models}
    return VariationResult(tuple(rows), counts)


def architecture_of(model: nn.Module) -> str:
    """`TRANSFORMER` if it has self-attention, `CNN` if it is made of convolutions, else `OTHER`."""
    modules = list(model.modules())
    if any(is_attention(module) or "Attention" in type(module).__name__ for module in modules):
        return TRANSFORMER
    return CNN if any(isinstance(module, nn.Conv2d) for module in modules) else OTHER


def _check_latent_weights(name: str, model: nn.Module) -> None:
    if any(isinstance(module, PackedWeight) for module in model.modules()):
        raise ValueError(
            f"{name} is packed: it has no latent weights left; accepted: the training form (trained/ of a run) or a"
            " full-precision model."
        )


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def _weight_spread(model: nn.Module, name: str, layer: nn.Module) -> Spread:
    dimension = HEAD_DIMENSION.get(name.rpartition(".")[2])
    heads = _heads(model, name)
    # The heads of an output projection are in its columns: those are its channels here.
    channel_dim = 1 if heads and dimension == 1 else 0
    moments = Moments(heads)
    moments.update(layer.weight, channel_dim)
    spread = moments.spread()
    if channel_dim == 1:
        rows = Moments()
        rows.update(layer.weight, 0)
        spread = dataclasses.replace(rows.spread(), head_spread=spread.head_spread)
    return spread


@torch.inference_mode()
def _activation_spreads(
    name: str,
    model: PreTrainedModel,
    layers: Mapping[str, nn.Module],
    images: Dataset,
    batch_size: int,
    device: str | torch.device | None,
    progress: bool,
) -> dict[tuple[str, str], Spread]:
    batches = batches_of(images, batch_size)
    device = choose_device(device)
    moments: dict[tuple[str, str], Moments] = {}
    handles = []
    for layer, module in layers.items():
        role = layer.rpartition(".")[2]
        heads = _heads(model, layer)
        moments[layer, INPUT] = Moments(heads if role == "o_proj" else None)
        handles.append(module.register_forward_pre_hook(_input_hook(moments[layer, INPUT])))
        if heads and role != "o_proj":
            moments[layer, OUTPUT] = Moments(heads)
            handles.append(module.register_forward_hook(_output_hook(moments[layer, OUTPUT])))
    training = model.training
    model.eval().to(device)
    try:
        for batch in tqdm(batches, desc=name, unit="batch", disable=not progress, leave=False):
            model(pixel_values=batch["pixel_values"].to(device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {key: values.spread() for key, values in moments.items() if values.seen}


def _input_hook(moments: Moments):
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.update(args[0], 1 if isinstance(module, nn.Conv2d) else -1)

    return hook


def _output_hook(moments: Moments):
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        moments.update(output, -1)

    return hook


def _heads(model: nn.Module, layer: str) -> int | None:
    parent, _, role = layer.rpartition(".")
    return getattr(model.get_submodule(parent), "num_attention_heads", None) if role in HEAD_DIMENSION else None


def _kind(name: str, module: nn.Module, last: bool) -> str:
    role = name.rpartition(".")[2]
    if role in _ROLE_KIND:
        return _ROLE_KIND[role]
    if is_patch_embedding(name):
        return "first layer"
    if last and isinstance(module, nn.Linear):
        return "last layer"
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise convolution"
    return "pointwise convolution" if module.kernel_size == (1, 1) else "convolution"
