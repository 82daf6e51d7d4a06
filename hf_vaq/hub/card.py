"""The card of a model: metadata that the Hub indexes, and a page for people, both from data and never by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config import QuantConfig
from ..integration.quantizer import MISSING_PACKAGE
from ..tables import bits_name
from ..version import __version__
from . import layout
from .records import FULL_PRECISION, Accuracy, Speed, Training
from .scheme import LayerGroup, Scheme

_PACKAGE = Path(__file__).resolve().parents[1]
TASK = "image-classification"
_WEIGHT_SCALES = {
    "tensor": "one scale a layer",
    "head": "one scale an attention head in the projections of attention, and one scale a layer elsewhere",
    "channel": "one scale an output channel",
}


@dataclass(frozen=True)
class Figure:
    """A picture in the repository: its path there, a title and a caption."""

    file: str
    title: str
    caption: str


@dataclass(frozen=True)
class CardFacts:
    """All that a card says.

    Attributes:
        name: of the model, such as "vit_w2a2".
        where: what loads it: its id on the Hub, or a folder.
        architecture: class of the model.
        num_classes: number of classes.
        image_size: (height, width) in pixels; None where the model takes any.
        quantization: configuration of the model.
        scheme: what is packed how.
        model_type: `config.model_type`.
        accuracies: what was measured; those of the model itself go into the metadata.
        speeds, speed_machine: a speed measurement, and where it was made.
        training: how it was trained; None where unknown.
        base_model: Hub id of the full-precision start, if it has one.
        license: identifier as the Hub has it, such as "apache-2.0"; None where unknown.
        datasets: Hub ids of the data that it was trained on.
        tags: beside those that every card has.
        figures: pictures in the repository.
        exports: files of exported forms in the repository, by name of the form.
        has_remote_code: whether the file that loads it without this package is in the repository.
        recipe_file: the recipe in the repository, if it is there.

    Raises:
        ValueError: a field that the Hub would not index as it is meant.
    """

    name: str
    where: str
    architecture: str
    num_classes: int
    image_size: tuple[int, int] | None
    quantization: QuantConfig
    scheme: Scheme
    model_type: str
    accuracies: Sequence[Accuracy] = ()
    speeds: Sequence[Speed] = ()
    speed_machine: str = ""
    training: Training | None = None
    base_model: str | None = None
    license: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    exports: Mapping[str, Sequence[str]] = field(default_factory=dict)
    has_remote_code: bool = True
    recipe_file: str | None = None

    def __post_init__(self) -> None:
        for name, value in [("base_model", self.base_model), *(("datasets", value) for value in self.datasets)]:
            try:
                if value is not None:
                    validate_repo_id(value)
            except HFValidationError as error:
                raise ValueError(f"card: {name} is {value!r}; accepted: an id on the Hub ({error}).") from error
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise ValueError(
                f"card: license is {self.license!r}; accepted: an identifier of the Hub, such as 'apache-2.0', 'mit'"
                " or 'other'."
            )

    @property
    def bits(self) -> str:
        """The usual short form, such as "W2A2"."""
        return bits_name(self.quantization.weight_bits, self.quantization.activation_bits)


def templates_folder() -> Path:
    """Return the folder of the templates: inside an installed package, or at the top of the repository."""
    inside = _PACKAGE / "hub_card_templates"
    return inside if inside.is_dir() else _PACKAGE.parent / "hub_cards" / "templates"


def model_card(facts: CardFacts) -> ModelCard:
    """Render the card."""
    template = templates_folder() / "model_card.md.jinja"
    return ModelCard.from_template(card_metadata(facts), template_path=str(template), card=_page(facts))


def card_metadata(facts: CardFacts) -> ModelCardData:
    """Return what the Hub indexes."""
    relation = {"base_model_relation": "quantized"} if facts.base_model else {}
    results = _eval_results(facts.accuracies)
    tags = ["hf_vaq", "quantized", "low-bit", facts.bits.lower(), facts.model_type, "arxiv:2307.00331", *facts.tags]
    return ModelCardData(
        base_model=facts.base_model,
        **relation,
        library_name="transformers",
        pipeline_tag=TASK,
        license=facts.license,
        datasets=list(facts.datasets) or None,
        tags=list(dict.fromkeys(tags)),
        metrics=["accuracy"] if results else None,
        model_name=facts.name,
        eval_results=results or None,
    )


def _eval_results(accuracies: Sequence[Accuracy]) -> list[EvalResult]:
    """The accuracies of the model itself, as fractions; the first one where several are of the same images."""
    own: dict[tuple, Accuracy] = {}
    for accuracy in accuracies:
        if accuracy.is_this:
            own.setdefault((accuracy.dataset, accuracy.config, accuracy.split), accuracy)
    metrics = (("top1", "accuracy", "Top-1 accuracy"), ("top5", "top_5_accuracy", "Top-5 accuracy"))
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image Classification",
            dataset_type=accuracy.dataset_id or accuracy.dataset,
            dataset_name=accuracy.dataset,
            dataset_config=accuracy.config,
            dataset_split=accuracy.split,
            dataset_revision=accuracy.revision,
            metric_type=metric,
            metric_name=name,
            metric_value=round(getattr(accuracy, key) / 100, 6),
        )
        for accuracy in own.values()
        for key, metric, name in metrics
    ]


def _page(facts: CardFacts) -> dict[str, Any]:
    """The strings that the template puts into the page."""
    scheme, own = facts.scheme, [row for row in facts.accuracies if row.is_this]
    float_size = next((row.size_bytes for row in facts.accuracies if row.model == FULL_PRECISION), None)
    packed_size = own[0].size_bytes if own else scheme.size_bytes
    float_size = float_size or scheme.float32_bytes
    ratio = f"1 / {float_size / packed_size:.1f}"
    training = facts.training
    return {
        "name": _cell(facts.name),
        "where": facts.where,
        "sentence": _sentence(facts),
        "architecture": f"`{facts.architecture}`, {scheme.parameters:,} parameters",
        "bits": _bits_sentence(facts),
        "size": f"{_size(packed_size)}, {ratio} of full precision ({_size(float_size)})",
        "classes": f"{facts.num_classes:,}",
        "input": _input(facts.image_size),
        "provenance": _provenance(facts),
        "missing_package": MISSING_PACKAGE,
        "has_remote_code": facts.has_remote_code,
        "remote_code": layout.REMOTE_CODE,
        "exports": facts.exports,
        "accuracies": [_accuracy_row(row) for row in facts.accuracies],
        "measured_by": _measured_by(facts.accuracies),
        "speeds": [
            {
                "name": _cell(row.name),
                "batch_size": row.batch_size,
                "milliseconds": f"{row.milliseconds:.3g}",
                "speed_up": "" if row.speed_up is None else f"{row.speed_up:.2f}",
            }
            for row in facts.speeds
        ],
        "speed_machine": facts.speed_machine,
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
        link = f"[{known}](https://huggingface.co/datasets/{known})" if known else _cell(facts.training.dataset)
        rows.append(("trained on", link))
    return rows


def _accuracy_row(row: Accuracy) -> dict[str, str]:
    def percent(value: float, interval: tuple[float, float] | None) -> str:
        text = f"{value:.2f} %"
        return text if interval is None else f"{text} ({interval[0]:.2f} to {interval[1]:.2f})"

    seed = "" if row.seed is None else f", seed {row.seed}"
    return {
        "model": _cell(f"{row.model}{seed}"),
        "images": _cell(f"{row.num_images:,} of {row.dataset}, {row.split}"),
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
    return f"It learned from the soft labels of a teacher: {_cell(training.teacher)}."


def _training_rows(training: Training) -> list[tuple[str, str]]:
    rows = [("recipe", f"`{training.recipe}`")] if training.recipe else []
    rows += [(name, _cell(value)) for name, value in training.settings.items()]
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


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
