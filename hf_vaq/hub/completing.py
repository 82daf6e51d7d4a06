"""Make the folder of a packed model what a repository on the Hub should be: its card, and the code that unpacks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from transformers import PretrainedConfig

from ..config import QUANT_METHOD, QuantConfig
from ..files import whole_file
from ..job.models import load_config
from ..privacy import public
from . import layout
from .card import model_card
from .facts import CardFacts, Figure
from .figures import CAPTIONS
from .records import (
    Accuracy,
    Training,
    accuracies_of_evaluation,
    accuracies_of_run,
    hub_id,
    last_logged,
    named_errors,
    read_json,
    read_recipe,
    training_of_arguments,
    training_of_recipe,
)
from .scheme import planned_scheme
from .speed_record import read_speed


@dataclass(frozen=True)
class CardOptions:
    """What a card says that is not in the files beside the model; None leaves it to them.

    Attributes:
        name: of the model.
        where: what loads it: an id on the Hub, or a folder.
        license: identifier as the Hub has it.
        base_model: Hub id of the full-precision start.
        datasets: Hub ids of the training data.
        tags: beside those that every card has.
    """

    name: str | None = None
    where: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] | None = None
    tags: Sequence[str] = ()


def complete_model_folder(folder: Path, options: CardOptions | None = None) -> CardFacts:
    """Write the card, and the file that loads the model without this package, into the folder of a packed model.

    The card says what the files in the folder say (`hf_vaq.hub.layout` has their names); no tensor is read.

    Raises:
        ValueError: no packed model lies there, or a file beside it is damaged.
    """
    config, quantization = read_packed_config(folder)
    facts = _facts(folder, config, quantization, options or CardOptions())
    code = resources.files(__package__) / "remote_code" / layout.REMOTE_CODE
    _write(folder / layout.REMOTE_CODE, code.read_text(encoding="utf-8"))
    content = read_json(folder / layout.CONFIG)
    content["auto_map"] = layout.AUTO_MAP
    _write(folder / layout.CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")
    _write(folder / layout.CARD, str(model_card(facts)))
    return facts


def read_packed_config(folder: Path) -> tuple[PretrainedConfig, QuantConfig]:
    """Read config.json.

    Raises:
        ValueError: there is none, or it describes no packed model.
    """
    quantization = read_quantization(folder)
    if not quantization.packed:
        raise ValueError(f"{str(folder)!r} holds a model in training form; accepted: a packed one, see hf_vaq.pack.")
    return load_config(folder), quantization


def read_quantization(folder: Path) -> QuantConfig:
    """Read the quantization of the model in a folder.

    Raises:
        ValueError: there is no model, it is not quantized by hf_vaq, or by a newer version.
    """
    if not (folder / layout.CONFIG).is_file():
        raise ValueError(f"{str(folder)!r} holds no model: it has no {layout.CONFIG}.")
    content = read_json(folder / layout.CONFIG)
    if not isinstance(content, dict):
        raise ValueError(f"{str(folder / layout.CONFIG)!r} holds a {type(content).__name__}: expected a mapping.")
    fields = content.get("quantization_config")
    method = fields.get("quant_method") if isinstance(fields, dict) else None
    if method != QUANT_METHOD:
        what = "in full precision" if fields is None else f"quantized by {method!r}"
        raise ValueError(
            f"the model in {str(folder)!r} is {what}; accepted: one that hf_vaq quantized ('hf-vaq train RECIPE', or"
            " hf_vaq.quantize and VaqTrainer)."
        )
    try:
        return QuantConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{str(folder / layout.CONFIG)!r}: {error}") from error


def _facts(folder: Path, config: PretrainedConfig, quantization: QuantConfig, options: CardOptions) -> CardFacts:
    training = _training(folder)
    speed = read_speed(folder / layout.BENCHMARK) if (folder / layout.BENCHMARK).is_file() else None
    size = getattr(config, "image_size", None)
    datasets = options.datasets
    if datasets is None:
        datasets = [training.dataset_id] if training and training.dataset_id else []
    return CardFacts(
        name=options.name or folder.resolve().name,
        where=options.where or folder.resolve().name,
        architecture=(config.architectures or [type(config).__name__])[0],
        num_classes=config.num_labels,
        image_size=(size, size) if isinstance(size, int) else size and (size[0], size[1]),
        quantization=quantization,
        scheme=planned_scheme(config, quantization),
        model_type=config.model_type,
        accuracies=_accuracies(folder),
        speeds=speed.rows if speed else (),
        speed_machine=speed.machine if speed else "",
        training=training,
        base_model=options.base_model or (training.base_model if training else None),
        license=options.license,
        datasets=datasets,
        tags=options.tags,
        figures=[
            Figure(f"{layout.FIGURES}/{name}.png", title, caption)
            for name, (title, caption) in CAPTIONS.items()
            if (folder / layout.FIGURES / f"{name}.png").is_file()
        ],
        exports={
            {"onnx": "ONNX", "openvino": "OpenVINO"}[form]: [path.relative_to(folder).as_posix() for path in files]
            for form, pattern in layout.EXPORTS.items()
            if (files := sorted((folder / form).glob(pattern)))
        },
        recipe_file=layout.RECIPE if (folder / layout.RECIPE).is_file() else None,
    )


def _training(folder: Path) -> Training | None:
    recipe, arguments, log = folder / layout.RECIPE, folder / layout.TRAINING, folder / layout.TRAINING_LOG
    if recipe.is_file():
        with named_errors(recipe, "'hf-vaq train'"):
            training = training_of_recipe(public(read_recipe(recipe)), _recipe_name(folder / layout.RESULTS))
    elif arguments.is_file():
        with named_errors(arguments, "a trainer"):
            content = public(read_recipe(arguments))
            start = hub_id(content.get("base_model"))
            training = training_of_arguments(content.get("arguments", {}), content.get("teacher"), start)
    else:
        return None
    if log.is_file():
        with named_errors(log, "a trainer"):
            training = replace(training, **last_logged(read_json(log)))
    return training


def _recipe_name(results: Path) -> str | None:
    if not results.is_file():
        return None
    with named_errors(results, "'hf-vaq train'"):
        return public(read_json(results))["recipe"]


def _accuracies(folder: Path) -> list[Accuracy]:
    """What `results.json` of the run and the evaluations say; an evaluation of the same images takes precedence."""
    found: list[Accuracy] = []
    for path in sorted((folder / layout.EVALUATION).glob("*.json")):
        found += accuracies_of_evaluation(public(read_json(path)), f"{layout.EVALUATION}/{path.name}")
    if (folder / layout.RESULTS).is_file():
        with named_errors(folder / layout.RESULTS, "'hf-vaq train'"):
            of_run = accuracies_of_run(public(read_json(folder / layout.RESULTS)))
        known = {(row.dataset, row.split, row.is_this) for row in found}
        found = [row for row in of_run if (row.dataset, row.split, row.is_this) not in known] + found
    return found


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
