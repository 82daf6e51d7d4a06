"""The main job: full-precision model, quantization, training, packing, and the evaluation of what was saved."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedModel, set_seed

from ..data import check_input_format
from ..evaluation import EvaluationResult, compute_metrics, evaluate_model, preprocess_logits_for_metrics
from ..packing import pack
from ..processes import on_main_process
from ..recipe import Recipe
from ..recipe.arguments import SELF_TEACHER
from ..soft_labels import SoftLabelStore
from ..tables import bits_name
from ..training import VaqTrainer, VaqTrainingArguments, last_complete_checkpoint
from ..training.stored_labels import build_soft_label_dataset
from ..version import __version__
from . import output
from .beginning import Beginning
from .checks import check_quantization, new_model
from .data import Splits
from .models import (
    load_config,
    load_image_processor,
    load_model,
    new_image_processor,
    new_model_config,
    saved_size,
)
from .publishing import publish_run, write_card
from .report import ModelResult, RunResult
from .run_files import NoteLogs, files_below, remove_files

Report = Callable[[str], None]


def run_recipe(recipe: Recipe, report: Report = lambda message: None) -> RunResult:
    """Run a recipe from beginning to end and return what it measured.

    The output folder then holds `recipe.yaml` (the recipe with its overrides), `float/` (where the recipe trained the
    full-precision model), `trained/` (training form: latent weights), `packed/` and `results.json`; checkpoints of
    the trainer lie beside them. With several processes every one of them calls this function; only the main one
    writes, evaluates and reports, and all return the same result.

    Args:
        recipe: what to run, see `hf_vaq.recipe.load_recipe`.
        report: receives a line at the start of every step.

    Raises:
        ValueError: bad input; as much as possible is checked before the first training step.
    """
    return _Run(recipe, report).run()


class _Run:
    """State of one run: what the steps hand to each other."""

    def __init__(self, recipe: Recipe, report: Report):
        self.recipe = recipe
        self.training = recipe.training
        self.folder = Path(recipe.training.output_dir)
        # Asked first, because it is what sets up the processes and the device that the recipe wants (use_cpu).
        self.device = recipe.training.device
        self.state = PartialState()
        self.report = report if self.state.is_main_process else lambda message: None
        self.seconds: dict[str, float] = {}
        self.beginning = Beginning(recipe)
        self.resume = self.beginning.resume

    def run(self) -> RunResult:
        started = time.perf_counter()
        for line in on_main_process(self.beginning.check):
            self.report(line)
        with self.state.local_main_process_first():
            self.splits = Splits.load(self.recipe.data)
        self._prepare_model()
        on_main_process(lambda: self.beginning.check_models(self.config, self.processor))
        on_main_process(lambda: self.beginning.begin(self.splits, self.soft_labels))
        try:
            with self._phase("full precision"):
                start, float_result = self._full_precision()
            with self._phase(self.bits):
                model = self._train_quantized(start)
            with self._phase("packing and evaluation"):
                quantized_result = self._pack_and_evaluate(model)
            self.seconds["total"] = time.perf_counter() - started
            return self._finish(float_result, quantized_result)
        except BaseException:
            if self.state.is_main_process:
                output.abandon(self.beginning.record)
            raise

    @property
    def bits(self) -> str:
        return bits_name(self.recipe.quantization.weight_bits, self.recipe.quantization.activation_bits)

    def _prepare_model(self) -> None:
        """Find config and image processor, and check the data against them before anything is trained."""
        arguments = self.recipe.model
        if arguments.model_config is not None:
            self.config = new_model_config(arguments.model_config, self.splits.label_names())
            check_quantization(self.config, self.recipe.quantization.config())
            if getattr(self.config, "image_size", None) is None:
                raise ValueError(
                    f"model_config's model_type {self.config.model_type!r} has no image_size; accepted: one that has."
                )
            self.processor = new_image_processor(self.config, arguments)
        else:
            self.config = load_config(arguments.model)
            if getattr(self.config, "quantization_config", None) is not None:
                raise ValueError(
                    f"model is {arguments.model!r}, which is quantized already; accepted: full precision."
                )
            check_quantization(self.config, self.recipe.quantization.config())
            self.processor = load_image_processor(arguments.model)
        check_input_format(self.processor, self.config)
        id2label = self.config.id2label
        self.train_set = self.splits.training_set(id2label, self.processor, self.training.data_seed)
        self.evaluation_set = self.splits.evaluation_set(id2label, self.processor)
        self.soft_labels = self._load_soft_labels()
        training = "a stream of" if self.recipe.data.dataset_streaming else f"{len(self.train_set)}"
        self.report(f"{training} training and {len(self.evaluation_set)} held-out images, {len(id2label)} classes")

    def _load_soft_labels(self) -> SoftLabelStore | None:
        """Open the store of soft labels and compare it with images and model, if the recipe trains from one."""
        name = self.recipe.labels.soft_labels
        if name is None:
            return None
        with self.state.local_main_process_first():
            store = SoftLabelStore.load(name)
        images = self.splits.labelled_images()
        stored = build_soft_label_dataset(images, store, self.config, self.processor, self.training)
        stored.check(shards=self.state.is_local_main_process)
        self.report(f"soft labels of {store.settings.teacher}, {store.settings.crops_per_image} crops an image")
        return store

    def _full_precision(self) -> tuple[str | Path, ModelResult | None]:
        """Return where the full-precision model lies, and its result (on the main process)."""
        if self.recipe.model.model is not None:
            start: str | Path = self.recipe.model.model
        else:
            start = self.folder / output.FLOAT
            if not start.is_dir():
                self._train_full_precision(start)
            # The model is complete, so its checkpoints are of no more use.
            place = f"{output.FLOAT_CHECKPOINTS}/"
            on_main_process(lambda: remove_files(self.beginning.record, lambda name: name.startswith(place)))

        def evaluate() -> ModelResult:
            model = load_model(start)
            result = ModelResult.of(self._evaluate(model, "full precision"), saved_size(model))
            self.report(f"full precision: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %")
            return result

        return start, on_main_process(evaluate)

    def _train_full_precision(self, folder: Path) -> None:
        arguments = self.recipe.float_training_arguments(self.folder / output.FLOAT_CHECKPOINTS)
        self.report(f"training the full-precision model for {arguments.num_train_epochs:g} epochs")
        set_seed(arguments.seed)
        model = new_model(self.config)
        trainer = self._trainer(model, arguments, teacher=None)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(arguments.output_dir) if self.resume else None)
        self._save(trainer.full_model(), folder)
        on_main_process(self.beginning.note_float_model)

    def _train_quantized(self, start: str | Path) -> PreTrainedModel:
        """Quantize, calibrate, train and save the training form."""
        arguments = self.training
        set_seed(arguments.seed)
        config = self.recipe.quantization.config()
        model = load_model(start, quantization_config=config)
        if arguments.max_steps > 0 or arguments.num_train_epochs > 0:
            length = (
                f"{arguments.max_steps} steps" if arguments.max_steps > 0 else f"{arguments.num_train_epochs:g} epochs"
            )
            self.report(f"training the {self.bits} model for {length}")
            if self.soft_labels is None:
                trainer = self._trainer(model, arguments, teacher=self._teacher(start))
            else:
                trainer = self._trainer(model, arguments, teacher=None, soft_labels=self.soft_labels)
            trainer.train(resume_from_checkpoint=self._checkpoint())
        else:
            self.report("calibrating the activations on training images")
            trainer = self._trainer(model, arguments, teacher=None)
            trainer.calibrate()
        model = trainer.full_model()
        self._save(model, self.folder / output.TRAINED)
        on_main_process(lambda: output.write_json(self.folder / output.TRAINING_LOG, trainer.state.log_history))
        return model

    def _teacher(self, start: str | Path) -> str | None:
        teacher = self.recipe.model.teacher
        return str(start) if teacher == SELF_TEACHER else teacher

    def _trainer(
        self,
        model: PreTrainedModel,
        arguments: VaqTrainingArguments,
        teacher: Any,
        soft_labels: SoftLabelStore | None = None,
    ) -> VaqTrainer:
        if self.device.type == "cpu":
            # Pinned memory speeds up copies to an accelerator; without one torch only warns about it.
            arguments.dataloader_pin_memory = False
        trainer = VaqTrainer(
            model=model,
            args=arguments,
            train_dataset=self.train_set if soft_labels is None else self.splits.labelled_images(),
            eval_dataset=self.evaluation_set,
            processing_class=self.processor,
            teacher=teacher,
            soft_labels=soft_labels,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.state.is_main_process:
            trainer.add_callback(NoteLogs(self.beginning.record, arguments.output_dir))
        return trainer

    def _checkpoint(self) -> str | None:
        """Return the checkpoint of the quantized phase to resume from, if any."""
        if not self.resume:
            return None
        given = str(self.training.resume_from_checkpoint)
        return last_complete_checkpoint(self.folder) if given.lower() == "true" else given

    def _pack_and_evaluate(self, model: PreTrainedModel) -> ModelResult | None:
        folder = self.folder / output.PACKED

        def pack_and_evaluate() -> ModelResult:
            self.report(f"packing to {folder}, loading it back and evaluating")
            self._write_model(pack(model), folder)
            packed = load_model(folder)
            result = ModelResult.of(self._evaluate(packed, f"{self.bits}, packed"), output.weights_size(folder))
            self.report(f"{self.bits}, packed: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %")
            return result

        return on_main_process(pack_and_evaluate)

    def _evaluate(self, model: PreTrainedModel, description: str) -> EvaluationResult:
        return evaluate_model(
            model,
            self.evaluation_set,
            batch_size=self.training.per_device_eval_batch_size,
            device=self.device,
            num_workers=self.training.dataloader_num_workers,
            progress=not self.training.disable_tqdm,
            description=f"evaluating {description}",
        )

    def _save(self, model: PreTrainedModel, folder: Path) -> None:
        on_main_process(lambda: self._write_model(model, folder))

    def _write_model(self, model: PreTrainedModel, folder: Path) -> None:
        with output.new_folder(folder, replace=True) as partial:
            model.save_pretrained(partial)
            self.processor.save_pretrained(partial)
            self._note(partial, folder)

    def _note(self, partial: Path, folder: Path) -> None:
        """Put the files of a folder that is about to get its name on the list of the run."""
        self.beginning.record.add(
            f"{folder.relative_to(self.folder).as_posix()}/{name}" for name in files_below(partial)
        )

    def _write_card(self) -> None:
        packed = self.folder / output.PACKED
        with output.new_folder(packed, replace=True) as partial:
            shutil.copytree(packed, partial, dirs_exist_ok=True)
            write_card(self.folder, partial)
            self._note(partial, packed)

    def _finish(self, float_result: ModelResult, quantized_result: ModelResult) -> RunResult:
        result = RunResult(
            recipe=self.recipe.name,
            bits=self.bits,
            seed=self.training.seed,
            dataset=self.recipe.data.dataset,
            split=self.splits.held_out_name,
            full_precision=float_result,
            quantized=quantized_result,
            difference=round(quantized_result.top1 - float_result.top1, 4),
            seconds={name: round(value, 2) for name, value in self.seconds.items()},
            versions={
                "hf_vaq": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        )
        on_main_process(lambda: output.write_json(self.folder / output.RESULTS, dataclasses.asdict(result)))
        on_main_process(self._write_card)
        on_main_process(lambda: publish_run(self.folder, self.training, self.report))
        return result

    @contextmanager
    def _phase(self, name: str):
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
