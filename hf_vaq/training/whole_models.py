"""Whole models from a trainer, however their weights are spread over processes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, Trainer

from .sharding import check_parallelism, gathered_model, is_sharded, prepare_sharding


class KeepsModelsWhole(Trainer):
    """The part of `VaqTrainer` that shards a model with FSDP2, and saves and hands out whole models all the same."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_parallelism(self.accelerator)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            prepare_sharding(self.accelerator, self.model)
        return super()._prepare_for_training(*args, **kwargs)

    def full_model(self) -> PreTrainedModel | None:
        """The model as one process alone would have it: to pack, save, push or evaluate it.

        Every process has to call this. Where FSDP2 has sharded the model, the main process gets a copy with the whole
        weights and the others None; otherwise every process gets the model itself.
        """
        if is_sharded(self.model):
            return gathered_model(self.model, keep=self.accelerator.is_main_process)
        return self.accelerator.unwrap_model(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in the base class, also where FSDP2 has sharded the model: always the whole model, of which one file."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        model, whole = self.model, gathered_model(self.model, keep=self.args.should_save)
        if whole is not None:
            self.model = whole
            try:
                self._save(output_dir)
            finally:
                self.model = model
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
