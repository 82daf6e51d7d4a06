"""What happens before a run trains anything: all that can be checked first, and then the first files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..recipe import Recipe
from ..recipe.arguments import SELF_TEACHER
from ..soft_labels import SoftLabelStore
from ..training import VaqTrainingArguments
from ..training.checkpoints import missing_part
from . import output
from .checks import check_apart, check_teacher, check_training
from .data import Splits
from .inputs import describe_images, describe_model, describe_store
from .models import load_model
from .publishing import check_publishing
from .run_files import RunRecord
from .same_run import check_same_inputs, check_same_recipe, deciding_fields, images_in_a_step

FLOAT_MODEL = "full-precision model of the run"


class Beginning:
    """The steps of a run before its training, in order; all of them are done by the main process alone.

    Nothing on disk changes before `begin`, which comes when everything else is checked.

    Attributes:
        resume: whether an earlier run is to be continued.
        record: what `run.json` holds, from `begin` on.
    """

    record: RunRecord

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.training = recipe.training
        self.folder = Path(recipe.training.output_dir)
        self.resume = _is_resuming(recipe.training)
        self._resumed: RunRecord | None = None

    def check(self) -> list[str]:
        """Check what needs neither data nor models: the Hub, the output folder, and the recipe that is resumed.

        Returns:
            Lines to report.

        Raises:
            ValueError: naming what cannot be used, and what can.
        """
        check_training(self.training)
        check_publishing(self.training)
        overwrite, models = self.recipe.output.overwrite_output_dir, self.recipe.model
        found = output.check_output_folder(self.folder, resume=self.resume, overwrite=overwrite)
        if overwrite:
            stored = self.recipe.labels.soft_labels
            paths = {"model": models.model, "teacher": models.teacher, "dataset": self.recipe.data.dataset}
            check_apart(self.folder, {**paths, "soft_labels": stored})
        if not self.resume:
            return []
        elsewhere = self._run_of_the_checkpoint()
        if elsewhere is not None and found is not None and elsewhere.folder != self.folder.resolve():
            raise ValueError(
                f"resume_from_checkpoint is {self.training.resume_from_checkpoint!r}, and output_dir"
                f" {str(self.folder)!r} holds another run. Choose another folder with --output_dir."
            )
        resumed = elsewhere or found
        if resumed is None:
            return [f"nothing to resume in {self.folder}: the run starts at its beginning"]
        if not output.has_trained(resumed):
            return []
        self._resumed = resumed
        return check_same_recipe(resumed, self.recipe)

    def check_models(self, config: PretrainedConfig, processor: Any) -> None:
        """Check that the model can be loaded, and that the teacher can teach it.

        Raises:
            ValueError: naming the model and what is wrong with it.
        """
        if self.recipe.model.model is not None:
            load_model(self.recipe.model.model)
        if (teacher := self._teacher()) is not None:
            check_teacher(teacher, config, processor)

    def begin(self, splits: Splits, soft_labels: SoftLabelStore | None) -> None:
        """Compare the inputs with those of the run that is resumed; then take the folder and write the first files.

        Raises:
            ValueError: they are others, or the folder cannot be used.
        """
        inputs: dict[str, Any] = {
            "images in a step (batch size x accumulation x processes)": images_in_a_step(self.training),
            "training images": describe_images(splits.train),
            "held-out images": describe_images(splits.held_out),
        }
        for name, model in (("model", self.recipe.model.model), ("teacher", self._teacher())):
            if model is not None:
                inputs[name] = describe_model(model)
        if soft_labels is not None:
            inputs["soft_labels"] = describe_store(soft_labels)
        if self._resumed is not None:
            trained = self._resumed.inputs.get(FLOAT_MODEL)
            if trained is not None and (self.folder / output.FLOAT).is_dir():
                inputs[FLOAT_MODEL] = describe_model(self.folder / output.FLOAT)
            elif trained is not None:
                inputs[FLOAT_MODEL] = trained  # another run's, whose checkpoint this one goes on from
            check_same_inputs(self._resumed, inputs)
        found = output.claim_output_folder(
            self.folder, resume=self.resume, overwrite=self.recipe.output.overwrite_output_dir
        )
        files = {} if found is None else {"files": found.files}
        self.record = RunRecord(self.folder, deciding_fields(self.recipe), inputs, **files)
        self.record.write()
        output.write_text(self.folder / output.RECIPE, self.recipe.to_yaml())

    def note_float_model(self) -> None:
        """Note what the full-precision model is that this run trained: it is start and teacher of what follows."""
        self.record.inputs[FLOAT_MODEL] = describe_model(self.folder / output.FLOAT)
        self.record.write()

    def _run_of_the_checkpoint(self) -> RunRecord | None:
        """Return the record of the run whose checkpoint is named, if one is named."""
        given = str(self.training.resume_from_checkpoint)
        if given.lower() == "true":
            return None
        if (missing := missing_part(given)) is not None:
            raise ValueError(
                f"resume_from_checkpoint is {given!r}, which is not complete ({missing}); accepted: true, for the "
                "last complete checkpoint in output_dir, or the folder of another one."
            )
        return RunRecord.read(Path(given).resolve().parent)

    def _teacher(self) -> str | None:
        """Return the model that is asked during training, if it is another one than the start."""
        trains = self.training.max_steps > 0 or self.training.num_train_epochs > 0
        teacher = self.recipe.model.teacher
        needed = trains and self.recipe.labels.soft_labels is None and teacher != SELF_TEACHER
        return teacher if needed else None


def _is_resuming(arguments: VaqTrainingArguments) -> bool:
    given = arguments.resume_from_checkpoint
    return given is not None and str(given).lower() not in ("false", "no")
