"""Publish a packed model that is in memory: what `packed.push_to_hub(...)` does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo
from transformers import AutoImageProcessor, PreTrainedModel

from ..job.output import write_json
from ..privacy import public
from ..training.run_record import RunRecord, run_record_of
from . import layout
from .completing import CardOptions, complete_model_folder, read_quantization
from .errors import HubError
from .publishing import CheckedTarget, Target, check_target, publish_folder
from .staging import ModelSource, copy_records


def write_model(
    model: PreTrainedModel, folder: Path, options: CardOptions, image_processor: Any = None, **save_options: Any
) -> None:
    """Fill `folder` with what is published of a packed model in memory.

    What is known of its training is what `VaqTrainer` left on the model, see `RunRecord`; of a model that was loaded
    from a folder and not trained since, what lies beside it there.

    Args:
        model: packed.
        folder: exists and is empty.
        options: of the card.
        image_processor: of the model; by default that of its training, or of the place it was loaded from.
        **save_options: for `save_pretrained`.

    Raises:
        HubError: there is no image processor.
    """
    record = run_record_of(model)
    model.save_pretrained(folder, **save_options)
    _image_processor(model, record, image_processor).save_pretrained(folder)
    if record is not None:
        content = {"base_model": record.base_model, "teacher": record.teacher, "arguments": dict(record.arguments)}
        text = yaml.safe_dump(public(content), sort_keys=False, allow_unicode=True)
        (folder / layout.TRAINING).write_text(text, encoding="utf-8")
        write_json(folder / layout.TRAINING_LOG, public(record.log))
    elif _is_local_model(model.config._name_or_path):
        copy_records(ModelSource.find(model.config._name_or_path), folder)
    complete_model_folder(folder, options)


def push_model(
    model: PreTrainedModel,
    repo_id: str,
    *,
    image_processor: Any = None,
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    max_shard_size: int | str = "50GB",
    overwrite: bool = False,
) -> CommitInfo:
    """Publish a packed model with its image processor and its card, in one commit.

    Args:
        model: what `hf_vaq.pack` or `from_pretrained` returned; it has this function as its `push_to_hub`.
        repo_id: "user/name", or "name".
        image_processor: by default that of the training, or of the place that the model was loaded from.
        license: identifier as the Hub has it.
        base_model: Hub id of the full-precision start, where the trainer does not know it.
        datasets: Hub ids of the training data.
        tags: beside those that every card has.
        private: as in `transformers.PreTrainedModel.push_to_hub`.
        token: as in `transformers.PreTrainedModel.push_to_hub`.
        revision: as in `transformers.PreTrainedModel.push_to_hub`.
        create_pr: as in `transformers.PreTrainedModel.push_to_hub`.
        commit_message: as in `transformers.PreTrainedModel.push_to_hub`.
        commit_description: as in `transformers.PreTrainedModel.push_to_hub`.
        max_shard_size: as in `transformers.PreTrainedModel.push_to_hub`.
        overwrite: publish where something else lies, too.

    Raises:
        HubError: it cannot be published there; nothing is then.
    """
    target = Target(
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
        token=token if isinstance(token, str) else None,
        overwrite=overwrite,
    )
    checked = check_target(target)

    def write(folder: Path) -> None:
        options = CardOptions(
            name=checked.target.repo_id.rpartition("/")[2],
            where=checked.target.repo_id,
            license=license,
            base_model=base_model,
            datasets=datasets,
            tags=[tags] if isinstance(tags, str) else tags or (),
        )
        write_model(model, folder, options, image_processor, max_shard_size=max_shard_size)

    return push_written(checked, write)


def push_written(
    checked: CheckedTarget, write: Callable[[Path], None], extra: Mapping[str, Path] | None = None
) -> CommitInfo:
    """Have `write` fill a temporary folder, and publish it.

    Args:
        checked: where.
        write: is called with the empty folder.
        extra: folders to publish in the same commit, by their path in the repository.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return publish_folder(Path(folder), checked, extra=extra)


def _is_local_model(name: str) -> bool:
    """Whether a model of this package was loaded from the folder `name`."""
    try:
        read_quantization(Path(name))
    except ValueError:
        return False
    return bool(name)


def _image_processor(model: PreTrainedModel, record: RunRecord | None, given: Any) -> Any:
    if given is not None:
        return given
    if record is not None and record.image_processor is not None:
        return record.image_processor
    loaded_from = model.config._name_or_path
    if loaded_from:
        try:
            return AutoImageProcessor.from_pretrained(loaded_from)
        except (OSError, ValueError) as error:
            raise HubError(_no_processor(model)) from error
    raise HubError(_no_processor(model))


def _no_processor(model: PreTrainedModel) -> str:
    return (
        f"no image processor is known for this {type(model).__name__}, without which nobody can use it: give"
        " push_to_hub(repo_id, image_processor=...), or give VaqTrainer a processing_class."
    )
