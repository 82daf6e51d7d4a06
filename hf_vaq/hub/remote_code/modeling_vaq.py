"""Load a packed model of hf_vaq where that package is not installed: needs torch and transformers only.

Published models carry this file, and transformers runs it when it is asked to trust it:

    AutoModelForImageClassification.from_pretrained(repo_id, trust_remote_code=True)

It unpacks the integer codes and computes in floating point with the same operations as hf_vaq's "simulation", so the
logits are the same to the last bit; it is not fast, and it does not train. If hf_vaq is installed, that does the work.
The file is the same for every model: config.json says which layers are packed, and to how many bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, AutoModelForImageClassification
from transformers.masking_utils import eager_mask
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "vaq"
FORMAT_VERSION = 1

# Which layers of the supported families are what, as hf_vaq's checkpoint format 1 has it.
FAMILIES = ("beit", "deit", "dinov2", "swin", "vit")
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj")
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
HEAD_DIMENSION = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
ATTENTION_TENSORS = ("query", "key", "value", "probabilities")


@dataclass(frozen=True)
class Groups:
    """`count` equal groups along dimension `dim` of a tensor; each has one scale."""

    count: int = 1
    dim: int = 0

    def expand(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Spread (count,) values so that they broadcast against `shape`."""
        if self.count == 1:
            return values.reshape(())
        size = shape[self.dim]
        values = values.repeat_interleave(size // self.count)
        return values.view([size if i == self.dim % len(shape) else 1 for i in range(len(shape))])


class ActivationQuantizer(nn.Module):
    """round(clamp((x - offset) / scale, lowest, highest)) * scale + offset."""

    def __init__(self, bits: int, groups: Groups, signed: bool, with_offset: bool):
        super().__init__()
        self.lowest, self.highest = _range(bits, signed)
        self.groups = groups
        self.register_buffer("scale", torch.ones(groups.count, dtype=torch.float32))
        self.register_buffer("offset", torch.zeros(groups.count, dtype=torch.float32) if with_offset else None)

    def forward(self, x: Tensor) -> Tensor:
        """Quantized values, in shape and type of `x`."""
        scale = self.groups.expand(self.scale, x.shape)
        offset = None if self.offset is None else self.groups.expand(self.offset, x.shape)
        v = x.to(torch.promote_types(x.dtype, torch.float32))
        v = v / scale if offset is None else (v - offset) / scale
        v = v.clamp(self.lowest, self.highest).round() * scale
        return (v if offset is None else v + offset).to(x.dtype)


class PackedLayer(nn.Module):
    """A Linear or Conv2d whose weight is stored as dense integer codes; it is unpacked at the first use."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, bits: int, groups: Groups):
        super().__init__()
        self.shape, self.dtype, self.bits, self.groups = layer.weight.shape, layer.weight.dtype, bits, groups
        self.convolution = (
            {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
            if isinstance(layer, nn.Conv2d)
            else None
        )
        size = -(-self.shape.numel() * bits // 8)
        self.register_buffer("weight_codes", torch.zeros(size, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(groups.count, dtype=torch.float32))
        self.bias = None if layer.bias is None else nn.Parameter(torch.empty_like(layer.bias), requires_grad=False)
        self._unpacked: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """What the stock layer computes."""
        weight = self.weight.to(x.dtype)
        if self.convolution is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, **self.convolution)

    @property
    def weight(self) -> Tensor:
        """The weight in floating point, which some stock models ask for its type."""
        if self._unpacked is None or self._unpacked.device != self.weight_codes.device:
            self._unpacked = self.unpack().to(self.dtype)
        return self._unpacked

    def unpack(self) -> Tensor:
        """The weight in float32. Eight codes of b bits fill b bytes; within them code i has the bits from i b on."""
        bits, packed = self.bits, self.weight_codes
        columns = F.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).long()
        # The eighth byte of eight-bit codes reaches into the sign; the mask below removes what the shifts copy of it.
        runs = sum(columns[:, byte] << 8 * byte for byte in range(bits))
        codes = runs[:, None] >> torch.arange(0, 8 * bits, bits, device=packed.device) & (1 << bits) - 1
        codes = codes.view(-1)[: self.shape.numel()] + _range(bits, True)[0]
        return codes.view(self.shape).float() * self.groups.expand(self.weight_scale, self.shape)


def quantize_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of every module that has an `input_quantizer`."""
    if args:
        return (module.input_quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": module.input_quantizer(kwargs["hidden_states"])}


def quantized_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention on quantized tensors, (batch, heads, tokens, head_dim), for transformers' attention interface."""
    quantizers = getattr(module, "attention_quantizers", {})
    query, key, value = (
        quantizers[name](x) if name in quantizers else x
        for name, x in (("query", query), ("key", key), ("value", value))
    )
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if "probabilities" in quantizers:
        probabilities = quantizers["probabilities"](probabilities)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def replace_layers(model: nn.Module, config: Any, absent: tuple[str, ...] = ()) -> None:
    """Put packed layers and activation quantizers into a stock model on the meta device, as `config` says.

    Layers whose name is in `absent` stay as they are.
    """
    keep = config.modules_to_not_convert
    modules = dict(model.named_modules())
    layers = {
        name: module
        for name, module in modules.items()
        if (type(module) is nn.Linear or (type(module) is nn.Conv2d and name.endswith("patch_embeddings.projection")))
        and should_convert_module(name, keep)
        and name not in absent
    }
    known = model.config.model_type in FAMILIES
    shared = {
        name: roles
        for name in modules
        for roles in SHARED_INPUTS
        if known and all(f"{name}.{role}" in layers for role in roles)
    }
    heads = {
        name: module.num_attention_heads
        for name, module in modules.items()
        if known
        and should_convert_module(name, keep)
        and all(isinstance(getattr(module, role, None), nn.Linear) for role in HEAD_DIMENSION)
    }
    for name, layer in layers.items():
        parent, _, role = name.rpartition(".")
        prefix = model.base_model_prefix
        edge = role not in BLOCK_LINEARS if known else bool(prefix) and not name.startswith(f"{prefix}.")
        settings = _settings(config, name, edge=edge)
        module = layer
        if settings["weight_bits"] is not None:
            groups = Groups()
            if settings["weight_granularity"] == "channel":
                groups = Groups(layer.weight.shape[0], 0)
            elif settings["weight_granularity"] == "head" and parent in heads and role in HEAD_DIMENSION:
                groups = Groups(heads[parent], HEAD_DIMENSION[role])
            module = PackedLayer(layer, settings["weight_bits"], groups)
            model.set_submodule(name, module)
        if settings["activation_bits"] is not None and role not in shared.get(parent, ()):
            per_head = role == "o_proj" and settings["activation_granularity"] == "head"
            groups = Groups(heads[parent], -1) if per_head else Groups()
            after_gelu = role == "fc2"
            _quantize_input_of(module, settings["activation_bits"], groups, not after_gelu, after_gelu)
    for name in shared:
        bits = _settings(config, name)["activation_bits"]
        if bits is not None:
            _quantize_input_of(modules[name], bits, Groups(), True, False)
    for name in heads if config.quantize_attention else ():
        quantizers = nn.ModuleDict()
        for tensor in ATTENTION_TENSORS:
            settings = _settings(config, name, f"{name}.attention_quantizers.{tensor}")
            if settings["activation_bits"] is not None:
                groups = Groups(heads[name], 1) if settings["activation_granularity"] == "head" else Groups()
                signed = tensor != "probabilities"
                quantizers[tensor] = ActivationQuantizer(settings["activation_bits"], groups, signed, False)
        if quantizers:
            modules[name].attention_quantizers = quantizers


def _settings(config: Any, *names: str, edge: bool = False) -> dict[str, Any]:
    fields = ("weight_bits", "activation_bits", "weight_granularity", "activation_granularity")
    settings = {field: getattr(config, field) for field in fields}
    if edge:
        for field in ("weight_bits", "activation_bits"):
            settings[field] = settings[field] and config.edge_bits
    for pattern, override in (config.module_overrides or {}).items():
        if any(fnmatchcase(name, pattern) for name in names):
            settings |= override
    return settings


def _quantize_input_of(module: nn.Module, bits: int, groups: Groups, signed: bool, with_offset: bool) -> None:
    module.input_quantizer = ActivationQuantizer(bits, groups, signed, with_offset)
    module.register_forward_pre_hook(quantize_input, with_kwargs=True)


def _range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def read_headers(files: Iterable[str]) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every tensor in safetensors files, by name."""
    headers = {}
    for file in files:
        with safe_open(file, framework="pt") as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118
                tensor = checkpoint.get_slice(name)
                headers[name] = (tensor.get_shape(), tensor.get_dtype())
    return headers


def check_headers(model: nn.Module, headers: dict[str, tuple[list[int], str]]) -> None:
    """Refuse what transformers would fill with random numbers, drop, or convert to another type."""
    prefix, skeleton = f"{model.base_model_prefix}.", model.state_dict()
    bare = model.base_model is model
    scales = {f"{name}.{key}" for name, module in _quantized(model) for key in ("scale", "offset", "weight_scale")}
    missing = set(skeleton) - set(getattr(model, "all_tied_weights_keys", {}))
    for name, (shape, dtype) in headers.items():
        place = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in skeleton), None)
        if place is None:
            if bare and (not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")):
                continue  # the head of a classifier
            raise ValueError(f"this packed checkpoint holds {name!r}, for which its config.json has no place.")
        accepted = ("F32", "F64") if place in scales else ("F16", "BF16", "F32", "F64")
        if not skeleton[place].is_floating_point():
            accepted = ("U8",) if skeleton[place].dtype == torch.uint8 else (dtype,)
        if list(shape) != list(skeleton[place].shape) or dtype not in accepted:
            raise ValueError(
                f"this packed checkpoint is damaged: {name!r} has shape {list(shape)} and type {dtype}, expected"
                f" {list(skeleton[place].shape)} and {' or '.join(accepted)}."
            )
        missing.discard(place)
    if bare and not any(".pooler." in f".{name}" for name in headers):
        missing = {name for name in missing if not name.startswith("pooler.")}
    if headers and missing:
        raise ValueError(f"this packed checkpoint lacks {min(missing)!r}, which its config.json asks for.")


def check_values(model: nn.Module) -> None:
    """Refuse numbers that are not finite, and scales that are not positive or too large for their codes."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise ValueError(f"this packed checkpoint is damaged: {name!r} holds NaN or infinite values.")
    for name, module in _quantized(model):
        packed = isinstance(module, PackedLayer)
        scale, dtype = (module.weight_scale, module.dtype) if packed else (module.scale, torch.float32)
        largest = max(map(abs, _range(module.bits, True) if packed else (module.lowest, module.highest)))
        sane = (scale >= torch.finfo(torch.float32).tiny) & (scale * largest).to(dtype).isfinite()
        if not scale.is_meta and not sane.all():
            raise ValueError(f"this packed checkpoint is damaged: the scale of {name!r} is not positive and finite.")


def _quantized(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer | ActivationQuantizer):
            yield name, module


class PackedConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json."""

    def __init__(self, **fields: Any):
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"this model has checkpoint format {version!r}, and its modeling_vaq.py reads {FORMAT_VERSION}:"
                " install hf_vaq (pip install --upgrade hf-vaq), import it, and load without trust_remote_code."
            )
        if not fields.get("packed"):
            raise ValueError("this model is in training form; only hf_vaq reads it (pip install hf-vaq).")
        self.__dict__.update(fields)


class PackedLoader(HfQuantizer):
    """Builds the packed layers before `from_pretrained` fills them."""

    def update_attn_implementation(self, config: Any) -> Any:
        """The attention function is chosen at every load: ours if it quantizes, else the model's default."""
        settings = self.quantization_config
        overrides = (settings.module_overrides or {}).values()
        bits = [settings.activation_bits, *(override.get("activation_bits") for override in overrides)]
        config._attn_implementation = METHOD if settings.quantize_attention and any(bits) else None
        return config

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        headers = read_headers(checkpoint_files or ())
        # What a bare model has, and a classifier's checkpoint has not: transformers initialises it anew.
        packed_pooler = ("pooler.dense.weight_codes", "pooler.dense.input_quantizer.scale")
        absent = () if any(name.endswith(packed_pooler) for name in headers) else ("pooler.dense",)
        with torch.device("meta"):
            replace_layers(model, self.quantization_config, absent)
        check_headers(model, headers)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        check_values(model)
        model._weight_conversions = []  # it is saved under the names that it has in memory
        return model

    def is_serializable(self) -> bool:
        """The codes are saved as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are not."""
        return False


def register() -> None:
    """Teach transformers the format, unless hf_vaq, or this file in the folder of another model, did so already."""
    try:
        import hf_vaq  # noqa: F401
    except ImportError:
        if METHOD not in AUTO_QUANTIZER_MAPPING:
            register_quantization_config(METHOD)(PackedConfig)
            register_quantizer(METHOD)(PackedLoader)
            AttentionInterface.register(METHOD, quantized_attention)
            AttentionMaskInterface.register(METHOD, eager_mask)


class VaqForImageClassification:
    """Stands in the `auto_map` of config.json for the stock model class, which it fills with packed layers."""

    auto_class: type = AutoModelForImageClassification

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any, **kwargs: Any) -> nn.Module:
        """As the stock class does, which the auto class finds once it is told not to come here again."""
        register()
        return cls.auto_class.from_pretrained(name, *args, config=config, **kwargs | {"trust_remote_code": False})

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> nn.Module:
        raise ValueError("a packed model has no weights but those of its checkpoint: use from_pretrained.")

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Called by transformers; the stock class, and not this one, is what is saved."""


class VaqModel(VaqForImageClassification):
    """The same for `AutoModel`: the encoder without its classifier."""

    auto_class = AutoModel
