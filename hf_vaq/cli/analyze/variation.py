"""`hf-vaq analyze variation MODEL [MODEL ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import (
    add_common_arguments,
    add_compute_arguments,
    add_data_arguments,
    command_of,
    finish,
    short_name,
    split_of,
    versions,
)

HELP = "Measure how unequal weights (and, with images, activations) are: transformers beside CNNs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="local folders or Hub ids of image classifiers of any architecture, in full precision or training form",
    )
    add_data_arguments(
        parser,
        required=False,
        max_images=64,
        images_help="with --dataset: images for the activations, chosen at random (default: 64)",
    )
    add_compute_arguments(parser, batch_size=16)
    add_common_arguments(parser, "outputs/analysis/variation/<first model>")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and write the folder."""
    import numpy

    from ...analysis import analyze_variation
    from ...analysis.extra import load_extra
    from ...analysis.preparing import random_subset
    from ...analysis.report.variation import variation_report
    from ...analysis.report.writing import claim_folder
    from ...data import ImageClassificationDataset, evaluation_transform
    from ...job.models import load_image_processor, load_model

    load_extra("matplotlib")
    names = [short_name(model) for model in arguments.models]
    if len(set(names)) < len(names):
        names = [str(model) for model in arguments.models]
    if len(set(names)) < len(names):
        raise ValueError(f"MODEL is {' '.join(names)}, where one is given twice; accepted: different models.")
    split = None
    if arguments.dataset is not None:
        split = split_of(arguments, arguments.split)
    elif arguments.split is not None:
        raise ValueError(f"split is {arguments.split!r}, but there is no dataset; accepted: --dataset with it.")
    models = {name: load_model(model) for name, model in zip(names, arguments.models, strict=True)}
    images = None
    if split is not None:
        images = {}
        for name, model in zip(names, arguments.models, strict=True):
            transform = evaluation_transform(load_image_processor(model))
            # The labels do not matter here, so the classes of data and models need not agree.
            labels = numpy.zeros(len(split.rows), dtype=numpy.int64)
            data = ImageClassificationDataset(split.rows, labels, transform, image_column=arguments.image_column)
            images[name] = random_subset(data, arguments.max_images, arguments.seed)
    folder = arguments.output or Path("outputs/analysis/variation") / names[0]
    claim_folder(folder)
    result = analyze_variation(models, images, batch_size=arguments.batch_size, device=arguments.device, progress=True)
    facts = {
        "Models": ", ".join(map(str, arguments.models)),
        "Activations": "not measured (no --dataset)"
        if images is None
        else f"of {len(next(iter(images.values())))} images of {arguments.dataset}, split {split.name}",
        "Versions": ", ".join(f"{key} {value}" for key, value in versions().items()),
    }
    summary = result.summary()
    results = {
        "analysis": "variation",
        "command": command_of(arguments),
        "models": dict(zip(names, map(str, arguments.models), strict=True)),
        "dataset": arguments.dataset,
        "split": None if split is None else split.name,
        "images": result.images,
        "summary": summary.to_dict("records"),
        "versions": versions(),
    }
    report = variation_report(result, facts, command_of(arguments))
    finish(folder, report, results, {"modules": result.table(), "models": summary})
    return 0
