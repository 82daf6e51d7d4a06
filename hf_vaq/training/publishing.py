"""Publishing from the trainer: `VaqTrainingArguments(push_to_hub=True)` and `VaqTrainer.push_to_hub()`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from ..config import QuantConfig
from .run_record import record_run

logger = logging.get_logger(__name__)

CARD_FIELDS = {"license": "license", "tags": "tags", "finetuned_from": "base_model", "dataset_tags": "datasets"}
"""Arguments of the base class's `push_to_hub` that a card of ours has a place for, and what they are there."""


class PublishesPackedModels(Trainer):
    """The part of `VaqTrainer` that publishes: a quantized model packed, with image processor and card, in one commit.

    `hub_strategy` means what it means in transformers: "end" publishes when `push_to_hub` is called; "every_save"
    publishes at each checkpoint as well; "checkpoint" and "all_checkpoints" put the checkpoint into the same commit.
    Uploads are not made in the background. One that fails during training is reported and does not end the training.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in the base class; first it is checked that a packed model can be published there.

        Raises:
            hf_vaq.hub.HubError: if it cannot.
        """
        if _is_quantized(self.model) and self.is_world_process_zero():
            from ..hub.publishing import check_target

            check_target(self._hub_target(token=token, private=private))
        if private is not None:
            # Not every version of transformers that we support takes it as an argument.
            self.args.hub_private_repo = private
        super().init_hf_repo(token=token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the packed model; a model that is not quantized, as in the base class.

        Args:
            commit_message: of the commit.
            blocking: False uploads in the background and returns a future.
            token: instead of `args.hub_token`.
            revision: branch, instead of `args.hub_revision`.
            private: whether a new repository is private, instead of `args.hub_private_repo`.
            **kwargs: for the card: `license`, `tags`, `finetuned_from` (base model), `dataset_tags` (data sets).

        Returns:
            `huggingface_hub.CommitInfo`, or the future of it; None on all processes but the first.

        Raises:
            TypeError: an argument that a card of ours has no place for.
            hf_vaq.hub.HubError: it cannot be published.
        """
        if not _is_quantized(self.model):
            if private is not None:
                self.args.hub_private_repo = private
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)
        unknown = sorted(set(kwargs) - set(CARD_FIELDS))
        if unknown:
            raise TypeError(
                f"push_to_hub has no {', '.join(unknown)}; accepted for the card: {', '.join(CARD_FIELDS)}."
            )
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        card = {CARD_FIELDS[name]: value for name, value in kwargs.items()}
        options = {"commit_message": commit_message, "token": token, "revision": revision, "private": private}
        # Packed now, so that training that goes on does not change what a background upload sends.
        publish = self._publication(card, options)
        if publish is None:
            return None
        return publish() if blocking else HfApi().run_as_future(publish)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not _is_quantized(self.model):
            super()._push_from_checkpoint(checkpoint_folder)
            return
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy is HubStrategy.END:
            return
        step, epoch = self.state.global_step, int(self.state.epoch or 0)
        when = f"step {step}" if self.args.save_strategy == SaveStrategy.STEPS else f"epoch {epoch}"
        extra = {}
        if strategy is HubStrategy.CHECKPOINT:
            extra["last-checkpoint"] = Path(checkpoint_folder)
        elif strategy is HubStrategy.ALL_CHECKPOINTS:
            extra[f"checkpoint-{step}"] = Path(checkpoint_folder)
        publish = self._publication({}, {"commit_message": f"Training in progress, {when}"}, extra)
        if publish is None:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            publish()
        except ValueError as error:
            logger.warning(f"step {step} was not published, training goes on: {error}")

    def _publication(
        self, card: Mapping[str, Any], options: Mapping[str, Any], extra: Mapping[str, Path] | None = None
    ) -> Any:
        """Pack the model and return what publishes it; None on all processes but the first."""
        from ..hub.completing import CardOptions
        from ..hub.in_memory import push_written, write_model
        from ..hub.publishing import check_target
        from ..packing import pack

        # On every process: FSDP2 leaves each of them a part of the weights.
        model = self.full_model()
        if not self.is_world_process_zero():
            return None
        record_run(model, self.args, self.state, self.teacher_name, self.processing_class)
        packed = pack(model)

        def publish() -> Any:
            checked = check_target(self._hub_target(**options))
            name, where = checked.target.repo_id.rpartition("/")[2], checked.target.repo_id
            given = CardOptions(name=name, where=where, **card)
            return push_written(checked, lambda folder: write_model(packed, folder, given), extra)

        return publish

    def _hub_target(self, **options: Any) -> Any:
        from ..hub.publishing import Target

        given = {name: value for name, value in options.items() if value is not None}
        defaults = {
            "repo_id": self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            "private": self.args.hub_private_repo,
            "revision": self.args.hub_revision,
            "token": self.args.hub_token,
        }
        return Target(**defaults | given)


def _is_quantized(model: Any) -> bool:
    return isinstance(getattr(getattr(model, "config", None), "quantization_config", None), QuantConfig)
