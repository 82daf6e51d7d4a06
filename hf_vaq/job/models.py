"""The models of a run and their image processors."""

from __future__ import annotations

import copy
import difflib
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..data.processors import check_image_processor
from ..integration.checkpoint import read_headers
from ..recipe import ModelArguments
from .output import weights_size

logger = logging.getLogger(__name__)


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
    """Load an image-classification model from the Hub or a folder, in evaluation mode, with all of its weights.

    Raises:
        ValueError: there is no such model, its files are damaged, or its weights are not those that config.json asks
            for.
    """
    config = load_config(model, **{name: value for name, value in kwargs.items() if name == "revision"})
    with _reading(model, lambda: _damaged_file(model, config)), _without_report():
        loaded, found = AutoModelForImageClassification.from_pretrained(
            model, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    # transformers fills both with random numbers.
    for name, shape, expected in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"The model {str(model)!r} cannot be loaded: its tensor {name!r} has shape {tuple(shape)}, and its"
            f" config.json asks for {tuple(expected)}."
        )
    # Counters of batch normalization are of use to training only, and not in every checkpoint.
    names = sorted(name for name in found["missing_keys"] if not name.endswith(".num_batches_tracked"))
    if names:
        raise ValueError(
            f"The model {str(model)!r} cannot be loaded: its files lack {len(names)} tensors that its config.json asks"
            f" for, such as {names[0]!r}."
        )
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        logger.warning(f"{model}: {len(names)} tensors are not used, such as {names[0]!r}")
    return loaded.eval()


def load_config(model: str | Path, **kwargs: Any) -> PretrainedConfig:
    """Load the configuration of a model from the Hub or a folder.

    Raises:
        ValueError: there is no such model, or its config.json is damaged.
    """
    with _reading(model, lambda: CONFIG_NAME):
        config = AutoConfig.from_pretrained(model, **kwargs)
    classes = config.architectures
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(
            f"The model {str(model)!r} cannot be loaded: architectures in its {CONFIG_NAME} is {classes!r}, expected a"
            " list of names."
        )
    return config


def load_image_processor(model: str | Path, **kwargs: Any) -> Any:
    """Load the image processor that belongs to a model.

    Raises:
        ValueError: there is none, or its preprocessor_config.json is damaged.
    """
    with _reading(model, lambda: IMAGE_PROCESSOR_NAME, "has no image processor that can be loaded"):
        processor = AutoImageProcessor.from_pretrained(model, **kwargs)
        try:
            check_image_processor(processor)
        except ValueError as error:
            raise ValueError(f"{IMAGE_PROCESSOR_NAME}: {error}") from error
        return processor


@contextmanager
def _reading(model: str | Path, damaged_file: Callable[[], str], problem: str = "cannot be loaded") -> Iterator[None]:
    """Say of whatever transformers raises when it reads a model which model, which file, and why.

    What goes wrong in this package's own code, other than by `ValueError`, is a fault of it and stays what it is.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"The model {str(model)!r} {problem}: {_first_sentence(error)}") from error
    except Exception as error:
        if isinstance(error, ValueError) and _is_ours(error):
            raise ValueError(f"The model {str(model)!r} {problem}: {error}") from error
        if _is_ours(error):
            raise
        reason = f"{type(error).__name__}: {_first_sentence(error)}"
        raise ValueError(f"The model {str(model)!r} {problem}: {damaged_file()} is damaged ({reason})") from error


def _is_ours(error: Exception) -> bool:
    """Whether `error` came up in a module of this package, not in a library that reads the files."""
    package = str(Path(__file__).parents[1])
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.startswith(package) and file != __file__ for file in files)


def _damaged_file(model: str | Path, config: PretrainedConfig) -> str:
    """Which file of a model transformers cannot read: weights, if a model can be made as its config.json says."""
    try:
        with torch.device("meta"):
            AutoModelForImageClassification.from_config(copy.deepcopy(config))
    except Exception:  # the one that is reported came up before
        return CONFIG_NAME
    for file in sorted(Path(model).glob("*.safetensors")):
        try:
            read_headers([str(file)])
        except ValueError:
            return file.name
    return SAFE_WEIGHTS_INDEX_NAME if (Path(model) / SAFE_WEIGHTS_INDEX_NAME).is_file() else SAFE_WEIGHTS_NAME


@contextmanager
def _without_report() -> Iterator[None]:
    """Without what is logged of tensors that do not fit, a table: here that is an error of one line."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("transformers", "hf_vaq"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def saved_size(model: PreTrainedModel) -> int:
    """Return how many bytes the weights of a model take on disk, by saving it to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return weights_size(Path(folder))


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") + "."
