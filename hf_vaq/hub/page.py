"""The page of a card: the strings that its template puts into sentences and tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ..integration.quantizer import MISSING_PACKAGE
from ..markdown import code, plain
from ..version import __version__
from . import layout
from .facts import CardFacts
from .records import FULL_PRECISION, Accuracy, Training
from .scheme import LayerGroup, Scheme

_WEIGHT_SCALES = {
    "tensor": "one scale a layer",
    "head": "one scale an attention head in the projections of attention, and one scale a layer elsewhere",
    "channel": "one scale an output channel",
}


def page_strings(facts: CardFacts) -> dict[str, Any]:
    """The strings that the template puts into the page."""
    scheme, own = facts.scheme, [row for row in facts.accuracies if row.is_this]
    float_size = next((row.size_bytes for row in facts.accuracies if row.model == FULL_PRECISION), None)
    packed_size = own[0].size_bytes if own else scheme.size_bytes
    float_size = float_size or scheme.float32_bytes
    ratio = f"1 / {float_size / packed_size:.1f}"
    training = facts.training
    return {
        "name": plain(facts.name),
        # a string of Python: JSON writes it alike
        "where": json.dumps(facts.where, ensure_ascii=False),
        "sentence": _sentence(facts),
        "architecture": f"{code(facts.architecture)}, {scheme.parameters:,} parameters",
        "bits": _bits_sentence(facts),
        "size": f"{_size(packed_size)}, {ratio} of full precision ({_size(float_size)})",
        "classes": f"{facts.num_classes:,}",
        "input": _input(facts.image_size),
        "provenance": _provenance(facts),
        "missing_package": MISSING_PACKAGE,
        "has_remote_code": facts.has_remote_code,
        "remote_code": layout.REMOTE_CODE,
        "exports": {form: [code(file) for file in files] for form, files in facts.exports.items()},
        "accuracies": [_accuracy_row(row) for row in facts.accuracies],
        "measured_by": _measured_by(facts.accuracies),
        "speeds": [
            {
                "name": plain(row.name),
                "batch_size": row.batch_size,
                "milliseconds": f"{row.milliseconds:.3g}",
                "speed_up": "" if row.speed_up is None else f"{row.speed_up:.2f}",
            }
            for row in facts.speeds
        ],
        "speed_machine": plain(facts.speed_machine),
        "groups": [_group_row(group) for group in scheme.groups],
        "float_parameters": f"{scheme.float_parameters:,}",
        "float_size": _size(scheme.float_bytes),
        "attention": _attention(scheme),
        "weight_scales": _WEIGHT_SCALES[facts.quantization.weight_granularity],
        "training": _training_rows(training) if training else [],
        "training_sentence": _training_sentence(facts),
        "recipe_file": facts.recipe_file,
        "figures": [dataclasses.asdict(figure) for figure in facts.figures],
        "limits": _limits(facts, own),
        "version": __version__,
    }


def _sentence(facts: CardFacts) -> str:
    start = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else None
    what = f"{start}, quantized" if start else "An image classifier, quantized"
    weights, activations = facts.quantization.weight_bits, facts.quantization.activation_bits
    sides = []
    if weights is not None:
        sides.append(f"{weights}-bit weights")
    if activations is not None:
        sides.append(f"{activations}-bit activations")
    return (
        f"{what} to {' and '.join(sides)} with hf_vaq (variation-aware quantization). It is an ordinary transformers"
        " model, and its checkpoint holds integer codes, not floating-point weights."
    )


def _bits_sentence(facts: CardFacts) -> str:
    quantization = facts.quantization
    text = facts.bits
    if quantization.edge_bits is not None:
        text += f"; first and last layer {quantization.edge_bits} bits"
    if quantization.module_overrides:
        text += "; some layers differ, see below"
    return text


def _input(size: tuple[int, int] | None) -> str:
    pixels = f"{size[0]} x {size[1]} pixels" if size else "pictures"
    return f"{pixels}, as the image processor makes them"


def _provenance(facts: CardFacts) -> list[tuple[str, str]]:
    rows = []
    if facts.base_model:
        rows.append(("quantized from", f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"))
    if facts.training and facts.training.dataset:
        known = facts.training.dataset_id
        link = f"[{known}](https://huggingface.co/datasets/{known})" if known else plain(facts.training.dataset)
        rows.append(("trained on", link))
    return rows


def _accuracy_row(row: Accuracy) -> dict[str, str]:
    def percent(value: float, interval: tuple[float, float] | None) -> str:
        text = f"{value:.2f} %"
        return text if interval is None else f"{text} ({interval[0]:.2f} to {interval[1]:.2f})"

    seed = "" if row.seed is None else f", seed {row.seed}"
    return {
        "model": plain(f"{row.model}{seed}"),
        "images": plain(f"{row.num_images:,} of {row.dataset}, {row.split}"),
        "top1": percent(row.top1, row.top1_interval),
        "top5": percent(row.top5, row.top5_interval),
        "size": _size(row.size_bytes),
    }


def _measured_by(accuracies: Sequence[Accuracy]) -> str:
    text = "Measured with the packed model as it was saved and loaded again."
    if any(row.top1_interval for row in accuracies):
        text += " In parentheses: bootstrap confidence intervals over the images."
    return text


def _group_row(group: LayerGroup) -> dict[str, str]:
    return {
        "name": group.name,
        "layers": str(group.layers),
        "weight_bits": _bits(group.weight_bits),
        "input_bits": _bits(group.input_bits),
        "scales": " or ".join(map(str, group.scales)),
        "weights": f"{group.weights:,}",
        "size": _size(group.size_bytes),
    }


def _attention(scheme: Scheme) -> str:
    if not scheme.attention_bits:
        return "Inside attention nothing is quantized."
    by_bits: dict[str, list[str]] = {}
    for name, bits in scheme.attention_bits.items():
        by_bits.setdefault(_bits(bits), []).append(name)
    parts = [f"{_and(names)} have {bits} bits" for bits, names in by_bits.items()]
    return f"Inside attention {'; '.join(parts)}."


def _training_sentence(facts: CardFacts) -> str:
    training = facts.training
    if training is None:
        return ""
    if training.teacher is None:
        return "It was trained on hard labels with the bin regularizer of the method, if its weight below is not 0."
    return f"It learned from the soft labels of a teacher: {plain(training.teacher)}."


def _training_rows(training: Training) -> list[tuple[str, str]]:
    rows = [("recipe", code(training.recipe))] if training.recipe else []
    rows += [(name, plain(value)) for name, value in training.settings.items()]
    if training.steps is not None:
        rows.append(("optimizer steps", f"{training.steps:,}"))
    for name, value in (training.last_log or {}).items():
        rows.append((f"last logged {name.replace('_', ' ')}", f"{value:.4g}"))
    return rows


def _limits(facts: CardFacts, own: Sequence[Accuracy]) -> list[str]:
    limits = [
        f"It tells {facts.num_classes:,} classes apart, and answers with one of them whatever the picture shows.",
        "A packed model cannot be trained further; training goes on from the training form, which is not in here.",
    ]
    if own:
        images = own[0].num_images
        limits.append(
            f"The accuracy is that on the {images:,} images named above, of which one is {100 / images:.2g} points."
            " Other images were not tried."
        )
    else:
        limits.append("No accuracy was measured for this card.")
    if not facts.speeds:
        limits.append("No speed was measured for this card.")
    if facts.license is None:
        limits.append("No license is stated; ask whoever published it.")
    return limits


def _bits(values: Sequence[int | None]) -> str:
    return " or ".join("32" if value is None else str(value) for value in values)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _size(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
