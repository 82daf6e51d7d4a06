"""Whether a recipe goes on with the run that another one began: field by field, and by what its inputs hold."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipe import LabelArguments, Recipe
from ..recipe.parsing import SECTIONS
from ..training import VaqTrainingArguments
from .run_files import RunRecord

_GROUPS = {
    "the folder, and what is done to it": "output_dir overwrite_output_dir resume_from_checkpoint",
    "what is shown and logged": "logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level"
    " log_level_replica log_on_each_node report_to run_name project trackio_space_id trackio_bucket_id"
    " trackio_static_space_id disable_tqdm include_num_input_tokens_seen debug skip_memory_metrics",
    "when it is saved and evaluated": "save_strategy save_steps save_total_limit save_on_each_node"
    " enable_jit_checkpoint eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size"
    " eval_accumulation_steps eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics"
    " prediction_loss_only bf16_full_eval fp16_full_eval do_train do_eval do_predict",
    "where it is published": "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push"
    " hub_revision",
    "where and by how many it is computed": "use_cpu local_rank dataloader_num_workers dataloader_pin_memory"
    " dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context"
    " ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp"
    " fsdp_config deepspeed activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing"
    " gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps",
    "compared as one, see images_in_a_step": "per_device_train_batch_size gradient_accumulation_steps",
}
_OF_LABELLING = {field.name for field in dataclasses.fields(LabelArguments)} - {"soft_labels"}
MAY_CHANGE = frozenset(name for names in _GROUPS.values() for name in names.split()) | _OF_LABELLING
"""Fields that a resumed run may have other values of: they do not decide what is trained, and on what."""
MAY_GROW = ("num_train_epochs", "max_steps")
"""Fields that may be larger than before, with a warning."""


def deciding_fields(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that decide what is trained, as they stand in it."""
    return {name: value for name, value in recipe.values.items() if name not in MAY_CHANGE}


def images_in_a_step(training: VaqTrainingArguments) -> int:
    """Return how many images, of all processes together, an optimizer step sees."""
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def check_same_recipe(record: RunRecord, recipe: Recipe) -> list[str]:
    """Compare a recipe with that of the run it is to go on with.

    Returns:
        Warnings, a line each.

    Raises:
        ValueError: fields differ that may not; the message names each with both values.
    """
    defaults, now = _defaults(), deciding_fields(recipe)
    changes, warnings = [], []
    for name in sorted(record.recipe.keys() | now.keys()):
        default = defaults.get(name)
        old, new = record.recipe.get(name, default), now.get(name, default)
        if old == new:
            continue
        if (
            name in MAY_GROW
            and all(isinstance(value, int | float) and value > 0 for value in (old, new))
            and new > old
        ):
            warnings.append(
                f"warning: {name} was {old:g} and is {new:g}: the steps that are left follow the schedule of the "
                "longer run, those before followed that of the shorter one"
            )
        else:
            changes.append(f"{name} was {old!r} and is {new!r}")
    _raise(record.folder, changes)
    return warnings


def check_same_inputs(record: RunRecord, inputs: Mapping[str, Any]) -> None:
    """Compare what images, models and stored labels hold with what they held when the run began.

    Raises:
        ValueError: something differs; the message names it.
    """
    changes = [
        f"{name}: {record.inputs.get(name)} then, {inputs.get(name)} now"
        for name in sorted(record.inputs.keys() | inputs.keys())
        if record.inputs.get(name) != inputs.get(name)
    ]
    _raise(record.folder, changes)


def _raise(folder: Path, changes: list[str]) -> None:
    if changes:
        raise ValueError(
            f"resume_from_checkpoint is set, but the run in {str(folder)!r} was made of something else: "
            f"{'; '.join(changes)}. Resume it as it was, choose another folder with --output_dir, or replace the run "
            "with --overwrite_output_dir true."
        )


def _defaults() -> dict[str, Any]:
    found = {}
    for section in SECTIONS:
        for field in dataclasses.fields(section):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            found[field.name] = default.value if isinstance(default, enum.Enum) else default
    return found
