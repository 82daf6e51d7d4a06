"""The labelling of a recipe's training images: what `hf-vaq label` does."""

from __future__ import annotations

from collections.abc import Callable

import datasets
from accelerate import PartialState

from ..data import load_dataset, select_split
from ..processes import on_main_process
from ..recipe import Recipe
from ..recipe.arguments import SELF_TEACHER
from ..soft_labels import SoftLabelStore, label_dataset


def label_recipe(recipe: Recipe, report: Callable[[str], None] = lambda message: None) -> SoftLabelStore:
    """Label the training images of a recipe with its teacher and, if it says so, upload the store to the Hub.

    With several processes every one of them calls this function, and they share the work.

    Args:
        recipe: `soft_labels` is the folder of the store, `dataset` and `train_split` the images, `teacher` the model
            (`self`: the recipe's `model`); the fields `label_...` say how.
        report: receives a line at the start of every step.

    Raises:
        ValueError: bad input, before any labelling.
        hf_vaq.hub.HubError: the store cannot be published where the recipe says, before any labelling.
    """
    labels, training = recipe.labels, recipe.training
    if labels.soft_labels is None:
        raise ValueError("soft_labels is none; accepted: the folder to write, for instance --soft_labels labels/mine.")
    teacher = _teacher(recipe)
    device = training.device  # Asked first, because it sets up the processes and the device that the recipe wants.
    state = PartialState()
    if not state.is_main_process:
        report = _silent
    if labels.label_hub_id is not None:
        on_main_process(lambda: _check_target(labels.label_hub_id, training.hub_token))
    with state.local_main_process_first():
        split = _split(recipe)
    report(f"labelling {labels.label_crops} crops an image with {teacher} on {device}")
    store = label_dataset(
        split,
        teacher,
        labels.soft_labels,
        image_column=recipe.data.image_column,
        crops_per_image=labels.label_crops,
        top_k=labels.label_top_k,
        sampling=labels.sampling(),
        batch_size=labels.label_batch_size,
        dtype=labels.label_dtype,
        images_per_shard=labels.label_images_per_shard,
        num_workers=training.dataloader_num_workers,
        dataset_name=recipe.data.dataset,
        split_name=recipe.data.train_split,
        progress=not training.disable_tqdm,
    )
    if labels.label_hub_id is not None and state.is_main_process:
        report(f"uploading to {labels.label_hub_id}")
        store.push_to_hub(labels.label_hub_id, token=training.hub_token)
    return store


def _check_target(repo_id: str, token: str | None) -> None:
    """Ask the Hub whether the store can be published there: labelling may take hours."""
    from ..hub.publishing import DATASET, Target, check_target

    check_target(Target(repo_id, repo_type=DATASET, token=token))


def _teacher(recipe: Recipe) -> str:
    teacher = recipe.model.teacher
    if teacher == SELF_TEACHER:
        teacher = recipe.model.model
    if teacher is None:
        raise ValueError(
            f"teacher is {recipe.model.teacher!r}, and model {recipe.model.model!r}; accepted: a trained model, as "
            "Hub id or folder. A recipe with model_config trains one first: give its folder float/ as --teacher."
        )
    return teacher


def _split(recipe: Recipe) -> datasets.Dataset | datasets.IterableDataset:
    data = recipe.data
    if not recipe.labels.label_streaming:
        return select_split(load_dataset(data.dataset, data.dataset_config), data.train_split)
    streams = load_dataset(data.dataset, data.dataset_config, streaming=True)
    if data.train_split not in streams:
        raise ValueError(
            f"train_split is {data.train_split!r}; accepted with label_streaming: a whole split, {', '.join(streams)}."
        )
    return streams[data.train_split]


def _silent(message: str) -> None:
    """Say nothing: one process reports for all."""
