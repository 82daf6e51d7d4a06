"""Checks that a checkpoint holds what its model does: of files by their headers, before anything of them is read.

transformers fills what is missing with random numbers, drops what it has no place for, and converts types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from ..nn import PackedActivationQuantizer, PackedWeight
from .plan import Plan

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors that models have, by their names in safetensors files."""
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EXACT = (torch.float64, torch.float32)
"""Types that hold a packed scale, a float32 number, unchanged."""


class Header(NamedTuple):
    """Where a tensor of a checkpoint lies, and what it is; the name of its type where no model has that."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str


def read_headers(files: list[str] | None) -> dict[str, Header]:
    """Headers of the tensors in safetensors files, by name; empty for other files, and for none.

    Raises:
        ValueError: naming a file that is cut short or damaged.
    """
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        return {}
    found: dict[str, Header] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as checkpoint:
                for name in checkpoint.keys():  # noqa: SIM118
                    tensor = checkpoint.get_slice(name)
                    dtype = tensor.get_dtype()
                    found[name] = Header(str(file), tuple(tensor.get_shape()), TYPES.get(dtype, dtype))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error}.") from error
        except SafetensorError as error:
            raise ValueError(f"{file} is cut short or damaged ({error}): copy or download it again.") from error
    return found


def leave_out_new_pooler(model: PreTrainedModel, plan: Plan, headers: dict[str, Header]) -> None:
    """Take the pooler of a bare model out of `plan` if the checkpoint, being that of a classifier, has no codes of it.

    transformers then initialises it anew and says so, as with a full-precision checkpoint.
    """
    if headers and model.base_model is model:
        for layers, key in ((plan.weights, "weight_codes"), (plan.inputs, "input_quantizer.scale")):
            for name in [name for name in layers if name.startswith("pooler.")]:
                if not any(f".{found}".endswith(f".{name}.{key}") for found in headers):
                    del layers[name]


def check_types(model: PreTrainedModel, headers: dict[str, Header]) -> None:
    """Refuse a checkpoint with tensors of a type that the model cannot hold, which would be converted silently.

    Codes, buffers of integers, and scales of a packed model must have the very type that was saved, or a wider one;
    everything else any floating-point type: LayerNorms in half precision are sound.

    Raises:
        ValueError: naming file, tensor, its type and those accepted.
    """
    skeleton, scales = model.state_dict(), set(_packed_scales(model))
    for name, place in _places(model, headers).items():
        if place is None:
            continue
        header, dtype = headers[name], skeleton[place].dtype
        accepted = EXACT if place in scales else FLOATING if dtype.is_floating_point else (dtype,)
        if header.dtype not in accepted:
            names = " or ".join(key for key, value in TYPES.items() if value in accepted)
            found = next((key for key, value in TYPES.items() if value == header.dtype), header.dtype)
            raise ValueError(f"{header.file}: tensor {name!r} has type {found}, expected {names}.")


def check_not_packed(headers: dict[str, Header]) -> None:
    """Refuse codes where weights are expected, which would be random numbers.

    Raises:
        ValueError: naming the file and the first codes.
    """
    for name, header in headers.items():
        if name.endswith(".weight_codes"):
            raise ValueError(
                f"{header.file} holds packed codes ({name!r}), and its config.json does not say so: expected"
                " packed=true in its quantization_config, as hf_vaq.pack leaves it."
            )


def check_packed_files(model: PreTrainedModel, headers: dict[str, Header], files: list[str]) -> None:
    """Refuse a packed checkpoint that is not, tensor by tensor, what `model` holds: by name, shape and type.

    Args:
        model: skeleton of the packed model.
        headers: of all its files, see `read_headers`.
        files: its files.

    Raises:
        ValueError: naming the file, and the first tensor that is missing, too many, or of another shape or type.
    """
    if not headers:
        raise ValueError(f"packed checkpoint {files[0]}: expected safetensors files with codes and scales.")
    skeleton = model.state_dict()
    places = _places(model, headers)
    where = files[0] if len(files) == 1 else Path(files[0]).parent
    for name in sorted(skeleton.keys() - set(places.values())):
        if not _may_be_absent(model, name, headers):
            raise ValueError(
                f"packed checkpoint {where} lacks the tensor {name!r}, which its config.json asks for"
                " (a packed model takes no new layers: load the training form for that)."
            )
    names: dict[str, str] = {}
    for name, place in places.items():
        header = headers[name]
        if place is not None and names.setdefault(place, name) != name:
            raise ValueError(f"packed checkpoint {where} holds one tensor twice, as {names[place]!r} and {name!r}.")
        if place is None:
            if not _may_be_unused(model, name, headers):
                raise ValueError(
                    f"packed checkpoint {header.file} holds the tensor {name!r}, for which the model that its"
                    " config.json describes has no place."
                )
        elif header.shape != tuple(skeleton[place].shape):
            raise ValueError(
                f"packed checkpoint {header.file}: tensor {name!r} has shape {header.shape}, expected"
                f" {tuple(skeleton[place].shape)} (a packed model takes no new layers:"
                " load the training form for that)."
            )
    check_types(model, headers)


def check_loaded(model: PreTrainedModel) -> None:
    """Refuse a packed model that `from_pretrained(None, state_dict=...)` did not fill: there are no files to check.

    Raises:
        ValueError: naming the first tensor that was not loaded.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not (was_loaded(tensor) or _may_be_absent(model, name, {})):
            raise ValueError(f"packed state_dict lacks the tensor {name!r}.")


def was_loaded(tensor: Tensor) -> bool:
    """Whether `from_pretrained` read `tensor` from the checkpoint; one on the meta device lies there still."""
    # transformers marks what it has loaded, so as not to initialise it; accelerate carries the mark along.
    return tensor.is_meta or getattr(tensor, "_is_hf_initialized", False)


def _places(model: PreTrainedModel, headers: dict[str, Header]) -> dict[str, str | None]:
    """For the name of each tensor in the checkpoint its name in `model`; None if it has none there."""
    prefix = f"{model.base_model_prefix}."
    skeleton = model.state_dict()
    # A checkpoint of the bare model and one with a head differ by the prefix of the bare model.
    return {
        name: next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in skeleton), None)
        for name in headers
    }


def _may_be_absent(model: PreTrainedModel, name: str, headers: dict[str, Header]) -> bool:
    """Tied tensors are saved once; a bare model's pooler, which a classifier lacks, is initialised with a warning."""
    tied = name in getattr(model, "all_tied_weights_keys", {})
    has_pooler = any(".pooler." in f".{found}" for found in headers)
    new_pooler = model.base_model is model and name.startswith("pooler.") and not has_pooler
    return tied or new_pooler or _matches(model._keys_to_ignore_on_load_missing, name)


def _may_be_unused(model: PreTrainedModel, name: str, headers: dict[str, Header]) -> bool:
    """A bare model leaves out the head of a classifier, and the pooler if it is built without."""
    prefix = f"{model.base_model_prefix}."
    with_head = any(other.startswith(prefix) for other in headers)
    inner = name.removeprefix(prefix)
    head_or_pooler = inner.startswith("pooler.") or (with_head and inner == name)
    return (model.base_model is model and head_or_pooler) or _matches(model._keys_to_ignore_on_load_unexpected, name)


def _matches(patterns: list[str] | set[str] | None, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def _packed_scales(model: PreTrainedModel) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight | PackedActivationQuantizer):
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    yield f"{name}.{key}"
