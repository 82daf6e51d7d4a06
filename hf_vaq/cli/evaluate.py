"""`hf-vaq evaluate MODEL [MODEL ...] --dataset D`: accuracy with intervals, speed and size, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shared_arguments import add_dataset, add_output, check_output, write_output

if TYPE_CHECKING:
    from ..data import LabelledSplit

HELP = "Measure top-1 with its interval, top-5, images per second and size of one model or of several."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="folder, Hub id or HUB_ID@REVISION of a float, trained or packed model; the first is compared with",
    )
    add_dataset(parser, required=True, purpose="evaluate")
    parser.add_argument("--revision", help="branch, tag or commit, where there is one model and it is on the Hub")
    parser.add_argument(
        "--dataset_revision", "--dataset-revision", help="branch, tag or commit of a data set on the Hub"
    )
    parser.add_argument(
        "--streaming", action="store_true", help="read the data set while evaluating; nothing of it is stored"
    )
    parser.add_argument(
        "--max_images",
        "--max-images",
        type=int,
        help="evaluate on so many images: chosen at random, or the first ones with --streaming (default: all)",
    )
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=32, help="images a forward pass (default: 32)"
    )
    parser.add_argument(
        "--num_workers", "--num-workers", type=int, default=0, help="processes that read images (default: 0)"
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: an accelerator where there is one)")
    parser.add_argument(
        "--confidence_level",
        "--confidence-level",
        type=float,
        default=0.95,
        help="of the bootstrap intervals (default: 0.95)",
    )
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of --max_images (default: 0)")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from ..data import LabelledSplit, check_input_format, load_dataset
    from ..data.hub_identity import hub_identity
    from ..evaluation import BootstrapSettings, EvaluatedModel, EvaluationReport, evaluate_side_by_side
    from ..job.models import load_image_processor, load_model, saved_size
    from ..machine import machine

    bootstrap = BootstrapSettings(arguments.confidence_level, arguments.resamples, arguments.seed)
    check_output(arguments)
    names = [_model_and_revision(name, arguments) for name in arguments.models]
    dataset = load_dataset(
        arguments.dataset,
        arguments.dataset_config,
        revision=arguments.dataset_revision,
        streaming=arguments.streaming,
    )
    whole = LabelledSplit.select(dataset, arguments.split, arguments.image_column, arguments.label_column)
    split = whole.limited(arguments.max_images, arguments.seed)
    models, views = [], []
    for name, options in names:
        model, processor = load_model(name, **options), load_image_processor(name, **options)
        check_input_format(processor, model.config)
        models.append(model)
        views.append((model.config.id2label, processor))
    results = evaluate_side_by_side(
        models,
        split.side_by_side(views),
        batch_size=arguments.batch_size,
        device=arguments.device,
        num_workers=arguments.num_workers,
        progress=True,
        num_images=_expected(whole, arguments.max_images),
    )
    commits = [hub_identity(name, **options, repo_type="model")[1] for name, options in names]
    report = EvaluationReport(
        models=[
            EvaluatedModel.of(given, model, saved_size(model), result, commit)
            for given, model, result, commit in zip(arguments.models, models, results, commits, strict=True)
        ],
        data=_data(arguments, split, *hub_identity(arguments.dataset, arguments.dataset_revision)),
        settings={
            "device": str(models[0].device),
            "batch_size": arguments.batch_size,
            "num_workers": arguments.num_workers,
        },
        bootstrap=bootstrap,
    )
    print(report.table())
    write_output(arguments, {**report.to_dict(), "machine": machine()})
    return 0


def _model_and_revision(name: str, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Split HUB_ID@REVISION; a folder may have such a name, and has no revision."""
    hub_id, _, revision = name.partition("@")
    if Path(name).expanduser().exists() or not revision:
        hub_id, revision = name, arguments.revision
        if revision is not None and len(arguments.models) > 1:
            raise ValueError(
                f"revision is {revision!r}, and there are {len(arguments.models)} models; accepted: HUB_ID@REVISION"
                " for each model that has one."
            )
    elif arguments.revision is not None:
        raise ValueError(f"revision is {arguments.revision!r}, and {name} names one too; accepted: one of them.")
    return hub_id, {} if revision is None else {"revision": revision}


def _expected(split: LabelledSplit, max_images: int | None) -> int | None:
    stated = split.num_images
    return min((count for count in (stated, max_images) if count is not None), default=None)


def _data(
    arguments: argparse.Namespace, split: LabelledSplit, hub_id: str | None, commit: str | None
) -> dict[str, Any]:
    """Which images these were."""
    return {
        "dataset": arguments.dataset,
        "dataset_id": hub_id,
        "dataset_revision": commit,
        "dataset_config": arguments.dataset_config,
        "split": split.name,
        "image_column": arguments.image_column,
        "label_column": arguments.label_column,
        "streaming": arguments.streaming,
        "max_images": arguments.max_images,
        "seed": arguments.seed,
    }
