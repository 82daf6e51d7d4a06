"""Groups of quantizers whose sensitivity is asked for, by name: kinds of modules, blocks, heads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from ..integration.families import is_patch_embedding
from .switching import Part, Switchboard

KINDS = {
    "ffn": "weights and inputs of the MLP layers",
    "mhsa": "everything in self-attention: projections, their input, queries, keys, values, probabilities, output",
    "query": "query projections (weights) and queries",
    "key": "key projections (weights) and keys",
    "value": "value projections (weights) and values",
    "attention_probabilities": "attention probabilities",
    "attention_output": "output projections: weights and input",
    "first_layer": "patch embedding: weights and input",
    "last_layer": "classifier: weights and input",
    "other": "layers outside blocks, first and last layer, such as Swin's patch merging",
}
"""Kinds of modules. Beside them there are the groups `block.<i>` and `block.<i>.head.<j>`, both counted from 0.

A head is its rows of the query, key and value projections, its columns of the output projection, and its part of
queries, keys, values, probabilities and attention output. The input that the three projections share belongs to
`mhsa` and to the block, but to none of them and to no head.
"""

_ATTENTION_KIND = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "attention_output"}
_TENSOR_KIND = {"query": "query", "key": "key", "value": "value", "probabilities": "attention_probabilities"}
_FFN_ROLES = ("fc1", "fc2", "gate_proj", "up_proj", "down_proj")
_BLOCK = re.compile(r"(.*\.\d+)\.")


@dataclass(frozen=True)
class Group:
    """Some parts of a model, under a name.

    Attributes:
        name: see `KINDS`.
        parts: its quantizers, or the shares of heads in them.
    """

    name: str
    parts: frozenset[Part]


@dataclass(frozen=True)
class Location:
    """Where a quantizer belongs.

    Attributes:
        kinds: names among `KINDS`.
        block: module name of the transformer block; None outside.
    """

    kinds: tuple[str, ...]
    block: str | None


def locate(model: nn.Module, quantizer: str) -> Location:
    """Kinds and block of a quantizer, given by its module name."""
    owner, _, role = quantizer.rpartition(".")
    if role in _TENSOR_KIND:
        return Location(("mhsa", _TENSOR_KIND[role]), _block(owner))
    layer_role = owner.rpartition(".")[2]
    if layer_role in _ATTENTION_KIND:
        return Location(("mhsa", _ATTENTION_KIND[layer_role]), _block(owner))
    if layer_role in _FFN_ROLES:
        return Location(("ffn",), _block(owner))
    children = dict(model.get_submodule(owner).named_children())
    if "q_proj" in children:  # the shared input
        return Location(("mhsa",), _block(quantizer))
    if "gate_proj" in children:
        return Location(("ffn",), _block(quantizer))
    if is_patch_embedding(owner):
        return Location(("first_layer",), None)
    prefix = getattr(model, "base_model_prefix", "")
    return Location(("other" if prefix and owner.startswith(f"{prefix}.") else "last_layer",), None)


def block_names(model: nn.Module, board: Switchboard) -> list[str]:
    """Module names of the transformer blocks that hold quantizers, in the order of the model."""
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    blocks = {locate(model, part.quantizer).block for part in board.parts} - {None}
    return sorted(blocks, key=order.__getitem__)


def find_groups(model: PreTrainedModel, board: Switchboard, patterns: Sequence[str] | None = None) -> list[Group]:
    """The groups of a quantized model: kinds, blocks and heads, in this order.

    Args:
        model: the model.
        board: its switchboard.
        patterns: shell-style patterns of group names, such as `block.*`; all groups if not given.

    Raises:
        ValueError: a pattern matches no group of this model.
    """
    by_name: dict[str, set[Part]] = {kind: set() for kind in KINDS}
    blocks = block_names(model, board)
    for index in range(len(blocks)):
        by_name[f"block.{index}"] = set()
    heads: dict[str, set[Part]] = {}
    for part in sorted(board.parts, key=lambda part: (part.quantizer, -1 if part.head is None else part.head)):
        location = locate(model, part.quantizer)
        for kind in location.kinds:
            by_name[kind].add(part)
        if location.block is not None:
            index = blocks.index(location.block)
            by_name[f"block.{index}"].add(part)
            if part.head is not None:
                heads.setdefault(f"block.{index}.head.{part.head}", set()).add(part)
    by_name |= {name: heads[name] for name in sorted(heads, key=lambda name: [int(i) for i in name.split(".")[1::2]])}
    groups = [Group(name, frozenset(parts)) for name, parts in by_name.items() if parts]
    return groups if patterns is None else _matching(groups, patterns)


def _matching(groups: list[Group], patterns: Sequence[str]) -> list[Group]:
    for pattern in patterns:
        if not any(fnmatchcase(group.name, pattern) for group in groups):
            kinds = ", ".join(group.name for group in groups if group.name in KINDS)
            blocks = [group.name for group in groups if group.name not in KINDS]
            examples = f", {blocks[0]} and {blocks[-1]}" if blocks else ""
            raise ValueError(
                f"groups has {pattern!r}, which matches no group of this model. It has {kinds}{examples};"
                " patterns are shell-style, as in 'block.*'."
            )
    return [group for group in groups if any(fnmatchcase(group.name, pattern) for pattern in patterns)]


def _block(name: str) -> str | None:
    match = _BLOCK.match(f"{name}.")
    return match[1] if match else None
