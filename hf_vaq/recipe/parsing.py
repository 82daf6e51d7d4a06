"""Read a recipe: YAML, then overrides from the command line, then dataclasses that check their values."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..strict_yaml import read_yaml
from ..training.arguments import VaqTrainingArguments
from ..training.stored_labels import check_loss_arguments
from .arguments import DataArguments, FloatArguments, ModelArguments, OutputArguments, QuantArguments
from .convert import NONE, convert
from .label_arguments import LabelArguments
from .shipped import find_recipe, recipe_name

SECTIONS = (
    ModelArguments,
    DataArguments,
    QuantArguments,
    OutputArguments,
    FloatArguments,
    LabelArguments,
    VaqTrainingArguments,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe with its overrides, checked.

    Attributes:
        name: short name ("digits/vit_w2a2") or the file's name without its suffix.
        values: every field that the file or the command line sets, by name; what `recipe.yaml` of a run holds.
        model, data, quantization, output, float_phase, labels, training: the sections.
    """

    name: str
    values: dict[str, Any]
    model: ModelArguments
    data: DataArguments
    quantization: QuantArguments
    output: OutputArguments
    float_phase: FloatArguments
    labels: LabelArguments
    training: VaqTrainingArguments

    def float_training_arguments(self, output_dir: str | Path) -> VaqTrainingArguments:
        """Return the arguments of the full-precision phase: those of training, with the `float_` fields put in.

        Checkpoints go to `output_dir`. Fields of quantization (distillation, regularizer, scales) have no effect on a
        model that is not quantized and has no teacher.
        """
        phase = self.float_phase
        values = {name: value for name, value in self.values.items() if name in _fields(VaqTrainingArguments)}
        values.update(
            output_dir=str(output_dir),
            num_train_epochs=phase.float_num_train_epochs,
            max_steps=-1,
            learning_rate=phase.float_learning_rate,
            weight_decay=phase.float_weight_decay,
            warmup_steps=phase.float_warmup_steps,
            label_smoothing_factor=phase.float_label_smoothing,
            push_to_hub=False,
            resume_from_checkpoint=None,
        )
        return VaqTrainingArguments(**values)

    def to_yaml(self) -> str:
        """Return the recipe as it was run: the values of the file and of the command line together.

        What concerns only the folder of one run (to resume, to overwrite) is left out, and so is the token of the Hub.
        """
        left_out = ("resume_from_checkpoint", "overwrite_output_dir", "hub_token")
        values = {name: value for name, value in self.values.items() if name not in left_out}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and the fields that the command line overrides.

    Args:
        recipe: path of a YAML file, or the short name of a shipped recipe, such as "digits/vit_w2a2".
        overrides: what follows the recipe on the command line: `["--learning_rate", "5e-4", "--bf16"]`.

    Raises:
        ValueError: no such recipe, a field that does not exist (with the nearest one that does), or a value that does
            not fit; always before anything is written.
    """
    path = find_recipe(recipe)
    name = recipe_name(path)
    values = _converted({**read_fields(path), **parse_overrides(overrides)}, f"recipe {path}")
    values.setdefault("output_dir", f"outputs/{name}")
    sections = HfArgumentParser(SECTIONS).parse_dict(values)
    loaded = Recipe(name, values, *sections)
    _check(loaded)
    return loaded


def read_fields(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ValueError: no valid YAML, or no mapping from field names to values.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"Recipe {path} holds no mapping from field names to values.")
    return content


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--field value`, `--field=value`, `--field` (true) and `--field a b c` (a list) into a mapping.

    Raises:
        ValueError: a word that belongs to no field.
    """
    words: dict[str, list[str]] = {}
    current: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            current = words[key.replace("-", "_")] = [value] if equals else []
        elif current is None:
            raise ValueError(f"Unexpected argument {argument!r}; accepted: --field value.")
        else:
            current.append(argument)
    values: dict[str, Any] = {}
    for key, given in words.items():
        values[key] = given[0] if len(given) == 1 else (given or True)
    return values


def field_types() -> dict[str, Any]:
    """Return the type of every field that a recipe may set, by name."""
    return {name: hint for section in SECTIONS for name, hint in _fields(section).items()}


def _fields(section: type) -> dict[str, Any]:
    hints = typing.get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section) if field.init}


def _converted(values: dict[str, Any], where: str) -> dict[str, Any]:
    known = field_types()
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "'hf-vaq train --help' lists the fields."
            raise ValueError(f"Unknown field {name!r} in {where} or on the command line. {hint}")
    theirs = _fields(TrainingArguments)
    converted = {}
    for name, value in values.items():
        # In transformers' own fields "none" may be a word of its own (report_to: none); in ours it is YAML's null.
        given = None if value in NONE and name not in theirs else value
        converted[name] = convert(name, given, known[name])
    return converted


def _check(recipe: Recipe) -> None:
    """Check what concerns more than one section."""
    epochs = recipe.float_phase.float_num_train_epochs
    if recipe.model.model_config is not None and epochs <= 0:
        raise ValueError(
            f"float_num_train_epochs is {epochs:g}; accepted with model_config: above 0, because a new model is "
            "trained in full precision before it is quantized."
        )
    if recipe.model.model is not None and epochs > 0:
        raise ValueError(
            f"float_num_train_epochs is {epochs:g}; accepted with model: 0, because a given model is not trained "
            "further in full precision."
        )
    if recipe.data.dataset_streaming:
        _check_streaming(recipe)
    if recipe.labels.soft_labels is not None:
        _check_soft_labels(recipe)


def _check_streaming(recipe: Recipe) -> None:
    """Refuse what cannot be done with images that come one after the other, nobody knows how many."""
    if recipe.training.max_steps <= 0:
        raise ValueError(
            f"max_steps is {recipe.training.max_steps}; accepted with dataset_streaming: above 0, because the length "
            "of an epoch is not known."
        )
    if recipe.model.model_config is not None:
        raise ValueError("model_config is given; accepted with dataset_streaming: model, a full-precision one.")
    if recipe.labels.soft_labels is not None:
        raise ValueError(
            "soft_labels are given with dataset_streaming; accepted: one of them, because the images of stored labels "
            "are read in any order."
        )


def _check_soft_labels(recipe: Recipe) -> None:
    """Refuse what has no effect, or no place, where the student learns from stored labels."""
    check_loss_arguments(recipe.training)
    if recipe.training.max_steps <= 0 and recipe.training.num_train_epochs <= 0:
        raise ValueError("num_train_epochs is 0; accepted with soft_labels: above 0, because they are for training.")
    varied = dataclasses.asdict(recipe.data.augmentation())
    for name in ("affine_degrees", "affine_translate", "affine_zoom", "rand_augment_magnitude", "random_erasing"):
        if recipe.model.model is not None and varied[name]:
            raise ValueError(
                f"{name} is {varied[name]:g}; accepted with soft_labels: 0, because a label belongs to the very crop "
                "that the teacher saw."
            )
