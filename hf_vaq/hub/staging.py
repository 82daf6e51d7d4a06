"""Gather what is published of a local model, from its folder and the run that it comes from, in one new folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..job import output
from ..job.models import load_image_processor, load_model
from ..packing import pack
from ..privacy import public
from ..training.oscillation_record import RECORD_FOLDER
from . import layout
from .completing import CardOptions, complete_model_folder, read_quantization
from .figures import draw_figures
from .links import check_links
from .records import accuracies_of_evaluation, read_json, read_recipe
from .speed_record import read_speed

Report = Callable[[str], None]


@dataclass(frozen=True)
class ModelSource:
    """A local model: its own folder, and the output folder of the run that made it, if it lies in one."""

    model: Path
    run: Path | None

    @classmethod
    def find(cls, source: str | Path) -> ModelSource:
        """Tell a run, a model in a run, and a model on its own apart.

        Raises:
            ValueError: none of them is there.
        """
        path = Path(source)
        if not path.is_dir():
            raise ValueError(
                f"MODEL is {str(source)!r}, and there is no such folder; accepted: a model or run folder."
            )
        if not (path / layout.CONFIG).is_file() and (path / output.RECIPE).is_file():
            for name in (output.PACKED, output.TRAINED):
                if (path / name / layout.CONFIG).is_file():
                    return cls(path / name, path)
            raise ValueError(f"the run in {str(source)!r} has not come to its model: finish it first (hf-vaq train).")
        parent = path.resolve().parent
        is_of_run = path.resolve().name in (output.PACKED, output.TRAINED) and (parent / output.RECIPE).is_file()
        return cls(path, parent if is_of_run else None)

    def check_links(self, *more: str) -> None:
        """Refuse links out of the folder, or the run, among the model and the records of its run.

        Args:
            *more: names of what else is read in the run.

        Raises:
            HubError: naming the link and what it leads to.
        """
        if self.run is None:
            check_links([self.model], self.model)
            return
        names = (*layout.OWN_NAMES, layout.EVALUATION, *more)
        check_links([self.model, *(self.run / name for name in names)], self.run)

    @property
    def name(self) -> str:
        """What the model is called when nobody says otherwise."""
        return (self.run or self.model).resolve().name


def stage_model(
    source: str | Path,
    folder: Path,
    options: CardOptions,
    *,
    evaluations: Sequence[str | Path] = (),
    benchmark: str | Path | None = None,
    report: Report = lambda message: None,
) -> None:
    """Fill `folder` with what is to be published of a model.

    Args:
        source: folder of a model, packed or in training form (which is packed first), or of a run.
        folder: empty.
        options: what the card says beside what it finds.
        evaluations: files that `hf-vaq evaluate --output` wrote.
        benchmark: file that `hf-vaq benchmark --output` wrote.
        report: receives a line about everything that is decided here.

    Raises:
        ValueError: the model cannot be published as it is; the message says what to do.
    """
    found = ModelSource.find(source)
    found.check_links(output.TRAINED, RECORD_FOLDER)
    quantization = read_quantization(found.model)
    if not (found.model / layout.IMAGE_PROCESSOR).is_file():
        raise ValueError(
            f"{str(found.model)!r} has no image processor ({layout.IMAGE_PROCESSOR}), without which nobody can use the"
            f" model: image_processor.save_pretrained({str(found.model)!r}) writes it."
        )
    for path in evaluations:
        accuracies_of_evaluation(read_json(Path(path)), str(path))
    if benchmark is not None:
        read_speed(Path(benchmark))
    model = load_model(found.model)
    if quantization.packed:
        for path in sorted(found.model.glob("*.safetensors*")):
            shutil.copyfile(path, folder / path.name)
        model.config.save_pretrained(folder)
    else:
        report(f"{found.model} is in training form: it is packed first")
        pack(model).save_pretrained(folder)
    load_image_processor(found.model).save_pretrained(folder)
    copy_records(found, folder)
    for number, path in enumerate(map(Path, evaluations)):
        (folder / layout.EVALUATION).mkdir(exist_ok=True)
        # Numbered, because two files may have one name; what is measured twice shows up twice.
        _write_public_json(path, folder / layout.EVALUATION / f"{number:02d}_{path.name}")
    if benchmark is not None:
        _write_public_json(Path(benchmark), folder / layout.BENCHMARK)
    if found.run is not None:
        names = draw_figures(found.run, found.run / output.TRAINED, folder / layout.FIGURES)
        report(f"{len(names)} figures for the card")
    complete_model_folder(folder, options)


def copy_records(found: ModelSource, folder: Path) -> None:
    """Copy what lies in the run or beside the model to `folder`, without paths and tokens of this machine.

    Raises:
        HubError: something there is a link out of the model's folder, or the run.
    """
    found.check_links()
    places = [*([found.run] if found.run else []), found.model]
    for name in (layout.RECIPE, layout.TRAINING):
        if (path := _first(places, name)) is not None:
            content = yaml.safe_dump(public(read_recipe(path)), sort_keys=False, allow_unicode=True)
            output.write_text(folder / name, content)
    for name in (layout.RESULTS, layout.TRAINING_LOG, layout.BENCHMARK):
        if (path := _first(places, name)) is not None:
            _write_public_json(path, folder / name)
    for place in places:
        for path in sorted((place / layout.EVALUATION).glob("*.json")):
            (folder / layout.EVALUATION).mkdir(exist_ok=True)
            _write_public_json(path, folder / layout.EVALUATION / path.name)
    for name in (layout.FIGURES, *layout.EXPORTS):
        if (found.model / name).is_dir() and found.model != folder:
            shutil.copytree(found.model / name, folder / name)


def _write_public_json(source: Path, target: Path) -> None:
    output.write_json(target, public(read_json(source)))


def _first(places: Sequence[Path], name: str) -> Path | None:
    return next((place / name for place in places if (place / name).is_file()), None)
