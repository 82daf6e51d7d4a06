"""The card of a run's packed model, and its publication where the recipe says push_to_hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from ..training import VaqTrainingArguments
from . import output

# hf_vaq.hub reads what runs leave, and so imports this package: it is imported where it is needed.


def check_publishing(training: VaqTrainingArguments) -> None:
    """Ask the Hub before any work whether the model can be published, if the recipe says push_to_hub.

    Raises:
        hf_vaq.hub.HubError: it cannot.
    """
    if training.push_to_hub:
        from ..hub import check_target

        check_target(_target(training))


def write_card(run: Path, folder: Path) -> None:
    """Put what makes a packed model publishable into its folder.

    That is recipe, results, training log, card, and the code to unpack it.

    Args:
        run: output folder of the run.
        folder: with the model, which will be `packed/` of the run.
    """
    from ..hub import CardOptions, complete_model_folder
    from ..hub.staging import ModelSource, copy_records

    copy_records(ModelSource(folder, run), folder)
    complete_model_folder(folder, CardOptions(name=run.resolve().name, where=f"{run.resolve().name}/{output.PACKED}"))


def publish_run(run: Path, training: VaqTrainingArguments, report: Callable[[str], None]) -> None:
    """Publish the packed model of a run that has ended, with figures, if the recipe says push_to_hub.

    Raises:
        hf_vaq.hub.HubError: it cannot be published; 'hf-vaq push' does it later.
    """
    if not training.push_to_hub:
        return
    from ..hub import CardOptions, check_target, publish_folder, stage_model

    checked = check_target(_target(training))
    where = checked.target.repo_id
    with tempfile.TemporaryDirectory() as folder:
        stage_model(run, Path(folder), CardOptions(name=where.rpartition("/")[2], where=where), report=report)
        commit = publish_folder(Path(folder), checked, report=report)
    report(f"published: {commit.commit_url}")


def _target(training: VaqTrainingArguments):
    from ..hub import Target

    return Target(
        training.hub_model_id or Path(training.output_dir).resolve().name,
        private=training.hub_private_repo,
        revision=training.hub_revision,
        token=training.hub_token,
    )
