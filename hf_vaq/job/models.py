"""The models of a run and their image processors."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessor,
)

from ..recipe import ModelArguments
from .output import weights_size


def new_model_config(model_config: dict[str, Any], label_names: Sequence[str]) -> PretrainedConfig:
    """Return the configuration of a new model that tells the given classes apart.

    Raises:
        ValueError: a model type that transformers does not know, or a field that its configuration does not have.
    """
    values = dict(model_config)
    model_type = values.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model_config's model_type is {model_type!r}, which transformers does not know.{hint}")
    config = AutoConfig.for_model(model_type)
    for name in values:
        # A misspelt field would otherwise be stored and ignored.
        if not hasattr(config, name):
            near = difflib.get_close_matches(name, list(config.to_dict()), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"model_config has the field {name!r}, which {type(config).__name__} does not know.{hint}"
            )
    id2label = dict(enumerate(label_names))
    return type(config)(**values, id2label=id2label, label2id={name: index for index, name in id2label.items()})


def new_image_processor(config: PretrainedConfig, arguments: ModelArguments) -> ViTImageProcessor:
    """Return a processor that resizes whole images to the model's size and normalises as the recipe says."""
    size = config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=arguments.image_mean, image_std=arguments.image_std
    )


def load_model(model: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load an image-classification model from the Hub or a folder, in evaluation mode.

    Raises:
        ValueError: there is no such model.
    """
    try:
        return AutoModelForImageClassification.from_pretrained(model, **kwargs).eval()
    except OSError as error:
        raise ValueError(f"The model {str(model)!r} cannot be loaded: {_first_sentence(error)}") from error


def load_config(model: str | Path, **kwargs: Any) -> PretrainedConfig:
    """Load the configuration of a model from the Hub or a folder.

    Raises:
        ValueError: there is no such model.
    """
    try:
        return AutoConfig.from_pretrained(model, **kwargs)
    except OSError as error:
        raise ValueError(f"The model {str(model)!r} cannot be loaded: {_first_sentence(error)}") from error


def load_image_processor(model: str | Path, **kwargs: Any) -> Any:
    """Load the image processor that belongs to a model.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(model, **kwargs)
    except OSError as error:
        raise ValueError(
            f"The model {str(model)!r} has no image processor (preprocessor_config.json): {_first_sentence(error)}"
        ) from error


def saved_size(model: PreTrainedModel) -> int:
    """Return how many bytes the weights of a model take on disk, by saving it to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return weights_size(Path(folder))


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") + "."
