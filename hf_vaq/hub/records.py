"""What was measured and how it was trained, as the files beside a model say it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..strict_yaml import read_yaml

FULL_PRECISION = "full precision"


@dataclass(frozen=True)
class Accuracy:
    """One model on one set of images.

    Attributes:
        model: "full precision", or the form of the quantized model, such as "W2A2, packed".
        is_this: whether it is the model of the card.
        dataset: name of the data set for people.
        dataset_id: its id on the Hub; None for a local or bundled one.
        split: the split.
        config, revision: of the data set, where known.
        num_images: how many images.
        top1, top5: in percent.
        top1_interval, top5_interval: bootstrap confidence intervals in percent, where measured.
        size_bytes: of the weights' files.
        seed: of the training run, where several runs are listed.
    """

    model: str
    is_this: bool
    dataset: str
    dataset_id: str | None
    split: str
    num_images: int
    top1: float
    top5: float
    size_bytes: int
    config: str | None = None
    revision: str | None = None
    top1_interval: tuple[float, float] | None = None
    top5_interval: tuple[float, float] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        percent = [self.top1, self.top5, *(self.top1_interval or ()), *(self.top5_interval or ())]
        if not all(_is_number(value) and 0 <= value <= 100 for value in percent):
            raise TypeError(f"top1, top5 and their intervals are {percent}; accepted: 0 to 100")
        for name in ("num_images", "size_bytes"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 2**63:
                raise TypeError(f"{name} is {value!r}; accepted: a number above 0")
        for name in ("model", "dataset", "dataset_id", "split", "config", "revision"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("model", "dataset", "split")):
                raise TypeError(f"{name} is {value!r}; accepted: text")


@dataclass(frozen=True)
class Speed:
    """One line of a speed measurement.

    Attributes:
        name: what was timed, such as "float32" or "packed, compiled".
        batch_size: images a forward pass.
        milliseconds: median time of a forward pass.
        speed_up: how many times as fast as eager float32; None for that itself.
    """

    name: str
    batch_size: int
    milliseconds: float
    speed_up: float | None


@dataclass(frozen=True)
class Training:
    """How the model was trained.

    Attributes:
        settings: what decides the result, by the name that people read.
        teacher: whose soft labels; None for training on hard labels.
        base_model: Hub id of the full-precision start; None for a local or newly trained one.
        dataset: name of the data set; None where unknown.
        dataset_id: its id on the Hub; None for a local or bundled one, and where unknown.
        recipe: short name of the recipe.
        steps: optimizer steps.
        last_log: last logged values, by name.
    """

    settings: Mapping[str, str]
    teacher: str | None
    base_model: str | None
    dataset: str | None
    dataset_id: str | None
    recipe: str | None = None
    steps: int | None = None
    last_log: Mapping[str, float] | None = None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no JSON file: {error}.") from error


def accuracies_of_run(results: Mapping[str, Any], *, with_seed: bool = False) -> list[Accuracy]:
    """Both models of a `results.json` of the main job, full precision first."""
    dataset = results["dataset"]
    return [
        Accuracy(
            model=name,
            is_this=key == "quantized",
            dataset=dataset,
            dataset_id=hub_id(dataset),
            split=results["split"],
            num_images=results[key]["num_images"],
            top1=results[key]["top1"],
            top5=results[key]["top5"],
            size_bytes=results[key]["size_bytes"],
            seed=results["seed"] if with_seed else None,
        )
        for key, name in (("full_precision", FULL_PRECISION), ("quantized", f"{results['bits']}, packed"))
    ]


def accuracies_of_evaluation(evaluation: Mapping[str, Any], name: str = "evaluation") -> list[Accuracy]:
    """The models of a file that `hf-vaq evaluate --output` wrote.

    The packed one is that of the card, or the only one there is.

    Raises:
        ValueError: several packed models, or none, or fields that are missing; `name` is that of the file.
    """
    try:
        data, models = evaluation["data"], evaluation["models"]
        packed = [model for model in models if model["form"].endswith("packed")]
        if len(packed) != 1:
            raise ValueError(
                f"{name} holds {len(packed)} packed models; accepted: what 'hf-vaq evaluate' wrote of this model,"
                " alone or beside models that are not packed."
            )
        return [
            Accuracy(
                model=model["form"],
                is_this=model is packed[0],
                dataset=data["dataset_id"] or data["dataset"],
                dataset_id=data["dataset_id"],
                config=data["dataset_config"],
                revision=data["dataset_revision"],
                split=data["split"],
                num_images=data["num_images"],
                top1=model["top1"],
                top5=model["top5"],
                top1_interval=_pair(model.get("top1_interval")),
                top5_interval=_pair(model.get("top5_interval")),
                size_bytes=model["size_bytes"],
            )
            for model in models
        ]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{name} is not what 'hf-vaq evaluate --output' writes: {type(error).__name__}: {error}."
        ) from error


def training_of_recipe(recipe: Mapping[str, Any], name: str | None) -> Training:
    """What a `recipe.yaml` says."""
    teacher = recipe.get("teacher", "self")
    start = recipe.get("model")
    if recipe.get("soft_labels"):
        teacher = f"stored soft labels, {recipe['soft_labels']}"
    elif teacher == "self":
        teacher = "the full-precision model that it started from"
    return Training(
        settings=_settings(recipe),
        teacher=teacher,
        base_model=hub_id(start) if start else None,
        dataset=recipe.get("dataset"),
        dataset_id=hub_id(recipe.get("dataset")),
        recipe=name,
    )


def training_of_arguments(arguments: Mapping[str, Any], teacher: str | None, base_model: str | None) -> Training:
    """What a trainer's arguments say; it does not know the name of its data set."""
    return Training(_settings(arguments), teacher, base_model, None, None)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a `recipe.yaml`.

    Raises:
        ValueError: it is no mapping.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds no mapping from field names to values.")
    return content


def hub_id(name: str | None) -> str | None:
    """`name` if it can be an id on the Hub: two plain parts, and nothing of that name lies on this machine."""
    if not name or Path(name).expanduser().exists():
        return None
    parts = name.split("/")
    plain = all(part and part[0] not in "._-~" and part.replace("-", "").replace(".", "").replace("_", "").isalnum()
                for part in parts)  # fmt: skip
    return name if len(parts) == 2 and plain else None


_SHOWN = {
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch size a device",
    "gradient_accumulation_steps": "gradient accumulation",
    "learning_rate": "learning rate",
    "scale_learning_rate": "learning rate of scales",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up",
    "weight_decay": "weight decay",
    "hard_label_weight": "weight of hard labels",
    "distillation_temperature": "temperature",
    "num_crops": "crops of an image in a batch",
    "bin_regularization": "bin regularizer, end value of lambda",
    "drop_path": "drop path",
    "calibration_batches": "calibration batches",
    "bf16": "bfloat16 autocast",
    "seed": "seed",
}


def _settings(values: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for key, name in _SHOWN.items():
        value = values.get(key)
        absent = value is None or value is False or (key == "max_steps" and value <= 0)
        if not absent:
            shown[name] = f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))
    return shown


def last_logged(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields `steps` and `last_log` of a `Training`, of a `training_log.json`."""
    steps = [entry for entry in log if "loss" in entry and "step" in entry]
    if not steps:
        return {}
    names = ("loss", "distillation_loss", "hard_label_loss", "bin_regularizer", "oscillation_percentage")
    last = {name: steps[-1][name] for name in names if name in steps[-1]}
    counted = [entry["step"] for entry in log if "step" in entry]
    for value in (*last.values(), *counted):
        if not _is_number(value):
            raise TypeError(f"it logs {value!r}; accepted: numbers")
    return {"steps": max(counted), "last_log": {name: float(value) for name, value in last.items()}}


@contextmanager
def named_errors(path: Path, writer: str) -> Iterator[None]:
    """Name the file whose content has another form than it should.

    Raises:
        ValueError: instead of what using such content raises.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{str(path)!r} is not what {writer} writes: {type(error).__name__}: {error}.") from error


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])
