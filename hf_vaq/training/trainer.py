"""VaqTrainer: the transformers Trainer for quantized Vision Transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..integration.quantizer import keep_parameter_names
from ..nn import weight_quantized_modules
from ..nn.fusion import set_fusion
from ..soft_labels.store import SoftLabelStore
from .arguments import VaqTrainingArguments
from .checkpoints import CompleteCheckpoints
from .checks import check_label_range
from .distillation import soft_cross_entropy
from .drop_path import set_drop_path
from .metrics import RunningMeans
from .non_finite import NonFiniteError, check_gradients, describe_non_finite_loss, first_non_finite_tensor
from .oscillation import OscillationTracker
from .oscillation_record import OscillationRecorder
from .parameter_groups import split_scale_groups
from .publishing import PublishesPackedModels
from .reading import ReadsSeededBatches
from .regularization import add_regularizer_gradient, cosine_ramp, model_bin_regularizer
from .run_record import RunRecorder, name_of_teacher
from .sharding import (
    UnshardedTracking,
    add_regularizer_gradient_by_shards,
    agreed,
    is_sharded,
    unsharded,
    whole_value,
)
from .stored_labels import build_soft_label_dataset
from .teacher import build_teacher
from .whole_models import KeepsModelsWhole


class VaqTrainer(ReadsSeededBatches, KeepsModelsWhole, CompleteCheckpoints, PublishesPackedModels):
    """Trains an image classifier, quantized or not, with distillation and the variation-aware bin regularizer.

    The loss is (1 - w) * soft cross-entropy with the teacher + w * cross-entropy with the labels, w being
    `args.hard_label_weight`; without a teacher it is the cross-entropy with the labels. Training adds lambda times the
    bin regularizer of the quantized weights. The evaluation loss is the cross-entropy with the labels, always.

    With `soft_labels` there is neither a teacher nor a hard label in training: the loss is the soft cross-entropy with
    the stored labels of `num_crops` crops of every image of a batch. Batch size and epochs are counted in crops, see
    `hf_vaq.soft_labels.SoftLabelDataset`; the last, incomplete batch of an epoch is dropped.

    Beyond `transformers.Trainer` it

    - gives scales and offsets of quantizers a learning rate of their own and no weight decay;
    - calibrates a quantized model that has no activation scales yet, on training images, before training;
    - logs, at each logging step, the means since the last one: `distillation_loss`, `hard_label_loss`,
      `bin_regularizer` (before lambda; where lambda has been 0 since the last log, its present value), `lambda` (the
      last value) and `oscillation_percentage`; `state.log_history` holds `oscillation_by_module` as well;
    - leaves a record of oscillations, scales and a few weights in the output folder, see `OscillationRecorder`;
    - stops at the first NaN or infinite loss, gradient or weight with an error that says where (`NonFiniteError`);
    - resumes bit for bit, whenever and however it was stopped: checkpoints appear whole (`CompleteCheckpoints`),
      random transforms of a dataset with indices depend on (`args.data_seed`, epoch, index) only, and a checkpoint
      that lacks tensors of the model is an error, not a warning.

    Args:
        model: an image-classification model.
        args: the arguments.
        data_collator: makes batches with "pixel_values" and "labels"; the default does for examples with
            "pixel_values" and "label" or "labels".
        train_dataset: examples with pixel values and an integer label.
        eval_dataset: the same, or a dictionary of several.
        processing_class: image processor that made the pixel values; saved with the model, and needed if the teacher
            has another one.
        teacher: an image-classification model, or the Hub id or folder of one; its parameters are frozen. It may
            have its own image size, normalisation and order of labels.
        teacher_processor: image processor of the teacher, see `build_teacher`.
        soft_labels: a store of soft labels instead of a teacher, or the folder or Hub id of one. `train_dataset` is
            then a `datasets.Dataset` with the images that were labelled, not transformed, and `processing_class`
            says how crops become pixel values.
        num_crops: instead of `args.num_crops`.
        **kwargs: as for `transformers.Trainer`. `compute_loss_func(outputs, labels, num_items_in_batch=...)` takes the
            place of the cross-entropy with the labels, in training (with a teacher as the part of `hard_label_weight`;
            `label_smoothing_factor` is then its own affair) and in evaluation. It returns the mean of its batch, which
            `num_items_in_batch=None` asks for.

    Raises:
        TypeError: if `args` are not `VaqTrainingArguments`.
        ValueError: if teacher or stored labels and student do not fit each other.
    """

    args: VaqTrainingArguments
    # compute_loss returns means over its batch; training_step divides them by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: VaqTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        teacher: PreTrainedModel | str | os.PathLike | None = None,
        teacher_processor: Any = None,
        soft_labels: SoftLabelStore | str | os.PathLike | None = None,
        num_crops: int | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, VaqTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}: VaqTrainer expects VaqTrainingArguments.")
        if soft_labels is not None and teacher is not None:
            raise ValueError("teacher and soft_labels exclude each other: stored labels replace the teacher.")
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        if args.label_names is None:
            # Not every model has labels in its signature (DeiT with its distillation head has none).
            self.label_names = ["labels"]
        if model is not None:
            self._set_up_model(model)
        self.teacher_name = name_of_teacher(teacher, soft_labels)
        self.teacher: nn.Module | None = None
        if teacher is not None:
            teacher = build_teacher(teacher, self.model, processing_class, teacher_processor)
            self.teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True)
        if num_crops is not None:
            args.num_crops = num_crops
        if soft_labels is not None:
            self.train_dataset = build_soft_label_dataset(
                train_dataset, soft_labels, self.model.config, processing_class, args
            )
            # Several processes would otherwise fill it up with crops that the epoch has seen.
            args.dataloader_drop_last = True
        self.tracker = OscillationTracker(args.oscillation_momentum, args.oscillation_threshold)
        self.recorder = OscillationRecorder(self.tracker)
        if args.oscillation_tracking:
            self.add_callback(UnshardedTracking(self.tracker))
            self.add_callback(self.recorder)
        self.add_callback(RunRecorder(self.teacher_name))
        self._means = RunningMeans()
        self._parts: tuple[dict[str, Tensor], Tensor | None] = {}, None
        self._lambda = 0.0
        self._regularizer_is_due = False

    # Before training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Check the datasets against model and teacher, then train; see `transformers.Trainer.train`.

        Raises:
            ValueError: if a dataset is empty, lacks pixel values or labels, or does not fit the model, or there is no
                complete checkpoint to resume from.
            CheckpointError: if a checkpoint cannot be written, for instance because the disk is full.
            NonFiniteError: if the loss, a gradient or a weight becomes NaN or infinite.
        """
        self._check_teacher(self._check_datasets())
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_teacher(self, pixel_values: Tensor) -> None:
        if self.teacher is not None:
            logits = self.teacher(pixel_values.to(self.args.device))
            if logits.shape[-1] != self.model.config.num_labels:
                raise ValueError(
                    f"the teacher answers with {logits.shape[-1]} logits, expected {self.model.config.num_labels}"
                    " (config.num_labels of the student)."
                )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in the base class, and set up as a given model is."""
        model = super().call_model_init(trial)
        self._set_up_model(model)
        return model

    def _set_up_model(self, model: nn.Module) -> None:
        keep_parameter_names(model)
        if self.args.fuse_quantizers is not None:
            set_fusion(model, self.args.fuse_quantizers)
        if self.args.drop_path is not None:
            set_drop_path(model, self.args.drop_path)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        # Before the model is wrapped for distributed training, so that all processes start from equal scales.
        if resume_from_checkpoint is None:
            self.calibrate()
            if self.args.oscillation_tracking:
                self.tracker.start(self.model)
        self._means.reset()
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in the base class, with scales and offsets in groups of their own."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if created:
            split_scale_groups(optimizer, self.model, self.args.resolved_scale_learning_rate())
        return optimizer

    # The loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Mean loss of a batch: the training loss in training mode, else the cross-entropy with the labels.

        Neither holds the bin regularizer, which `training_step` adds: a subclass that overrides this keeps it. For
        weights of classes `compute_loss_func` is enough.

        Raises:
            ValueError: if a label is not one of the model's, naming its row in the batch.
        """
        inputs = dict(inputs)
        labels, soft_labels = inputs.pop("labels", None), inputs.pop("soft_labels", None)
        outputs = model(**inputs)
        if model.training:
            loss = self._training_loss(outputs, labels, soft_labels, inputs)
        else:
            loss = self._hard_label_loss(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    def _training_loss(
        self,
        outputs: Any,
        labels: Tensor | None,
        soft_labels: Tensor | None,
        inputs: dict[str, Any],
    ) -> Tensor:
        logits = outputs.logits
        distils = self.teacher is not None or soft_labels is not None
        weight = self.args.hard_label_weight if distils else 1.0
        terms: dict[str, Tensor] = {}
        teacher_logits = None
        loss = torch.zeros((), device=logits.device)
        if self.teacher is not None:
            teacher_logits = self.teacher(inputs["pixel_values"])
            soft = soft_cross_entropy(logits, teacher_logits, self.args.distillation_temperature)
            terms["distillation_loss"] = soft.detach()
            loss = loss + (1 - weight) * soft
        elif soft_labels is not None:
            loss = F.cross_entropy(logits.float(), soft_labels)
            terms["distillation_loss"] = loss.detach()
        if weight > 0:
            hard = self._hard_label_loss(outputs, labels, self.args.label_smoothing_factor)
            terms["hard_label_loss"] = hard.detach()
            loss = loss + weight * hard
        self._parts = terms, teacher_logits
        return loss

    def _hard_label_loss(self, outputs: Any, labels: Tensor | None, smoothing: float = 0.0) -> Tensor:
        if labels is not None:
            check_label_range(labels, self.model.config.num_labels, self.state.global_step)
        if self.compute_loss_func is not None:
            # None asks for the mean of this batch, which training_step divides by the number of accumulated ones.
            return self.compute_loss_func(outputs, labels, num_items_in_batch=None)
        return F.cross_entropy(outputs.logits.float(), labels, label_smoothing=smoothing)

    def _regularization(self, terms: dict[str, Tensor]) -> Tensor | float:
        progress = self.state.global_step / max(self.state.max_steps, 1)
        self._lambda = cosine_ramp(progress, self.args.bin_regularization, self.args.bin_regularization_start)
        # It depends on the weights only, so one batch of those accumulated to a step bears it for all of them.
        if self._lambda == 0 or not self.accelerator.sync_gradients:
            return 0.0
        # Replicas of a model stay equal because all take part in averaging gradients: the regularizer's as well, which
        # need not have the same bits on different machines.
        if is_sharded(self.model) or self.accelerator.distributed_type == DistributedType.NO:
            self._regularizer_is_due = True
            return 0.0
        regularizer = model_bin_regularizer(self.model)
        terms["bin_regularizer"] = regularizer.detach()
        return self._lambda * getattr(self, "current_gradient_accumulation_steps", 1) * regularizer

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As in the base class, but of the model's outputs only the logits, (batch, labels), are kept."""
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        return loss, logits[0] if isinstance(logits, tuple) else logits, labels

    # During training

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As in the base class, with the regularizer, which joins after the backward pass where it can.

        Raises:
            NonFiniteError: if the loss is NaN or infinite.
        """
        self._regularizer_is_due = False
        # The base class goes from the loss to its gradients in one call: what every loss gets has to come between.
        compute_loss = self.compute_loss
        self.compute_loss = partial(self._regularized_loss, compute_loss)
        try:
            loss = super().training_step(model, *args, **kwargs)
        finally:
            self.compute_loss = compute_loss
        if self._regularizer_is_due:
            scaler = self.accelerator.scaler
            factor = self._lambda if scaler is None else self._lambda * scaler.get_scale()
            add = add_regularizer_gradient_by_shards if is_sharded(self.model) else add_regularizer_gradient
            regularizer = add(self.model, factor)
            self._means.add({"bin_regularizer": regularizer})
            loss = loss + self._lambda * regularizer
        return loss

    def _regularized_loss(
        self, compute_loss: Callable[..., Tensor], model: nn.Module, inputs: dict[str, Any], **kwargs: Any
    ) -> Tensor:
        """What `compute_loss` returns, plus the regularizer, checked and added to what is logged."""
        self._parts = {}, None
        loss = compute_loss(model, inputs, **kwargs)
        (terms, teacher_logits), self._parts = self._parts, ({}, None)
        loss = loss + self._regularization(terms)
        if not torch.isfinite(loss):
            images = {name: value for name, value in inputs.items() if name not in ("labels", "soft_labels")}
            raise describe_non_finite_loss(self.model, images, terms, teacher_logits, self.state.global_step)
        self._means.add(terms)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._check_gradients(model)
        return whole_value(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self._check_gradients(model)
        return whole_value(super()._get_grad_norm(model, grad_norm))

    def _check_gradients(self, model: nn.Module) -> None:
        # In float16 infinite gradients are part of the game: the gradient scaler skips such a step.
        if self.accelerator.scaler is None:
            check_gradients(model, self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the base class; the log of a training step gets the terms of the loss and the oscillations."""
        by_module: dict[str, float] = {}
        if self.is_in_train and "loss" in logs:
            logs.update(self._means.collect(self.accelerator))
            if next(weight_quantized_modules(self.model), None) is not None:
                if "bin_regularizer" not in logs:
                    with torch.no_grad(), unsharded(self.model):
                        logs["bin_regularizer"] = model_bin_regularizer(self.model).item()
                logs["lambda"] = self._lambda
                if self.args.oscillation_tracking:
                    logs["oscillation_percentage"] = self.tracker.percentage()
                    by_module = self.tracker.percentage_by_module()
        super().log(logs, start_time)
        if by_module:
            # For later analysis only: a number per module would flood the console and the reports.
            self.state.log_history[-1]["oscillation_by_module"] = by_module

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        bad = agreed(first_non_finite_tensor(self.model), self.model)
        if bad is not None:
            raise NonFiniteError(
                f"after step {self.state.global_step} the model is not finite, first: {bad}. It is not saved; the"
                " newest checkpoint is good."
            )
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.oscillation_tracking and self.args.should_save:
            self.tracker.save(output_dir)
            self.recorder.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.args.oscillation_tracking and checkpoint is not None:
            with unsharded(self.model):
                self.tracker.load(checkpoint, self.model)
            self.recorder.load(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result)
        missing = set(load_result.missing_keys) - set(self.model._keys_to_ignore_on_save or ())
        if missing:
            raise ValueError(
                f"the checkpoint lacks {len(missing)} tensors of the model, first {min(missing)!r}, and holds"
                f" {len(load_result.unexpected_keys)} that it does not know. Expected a checkpoint that VaqTrainer"
                " wrote for this model."
            )
