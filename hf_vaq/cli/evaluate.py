"""`hf-vaq evaluate MODEL --dataset D`: accuracy, speed and size of a float, trained or packed model."""

from __future__ import annotations

import argparse
from pathlib import Path

from .shared_arguments import add_dataset

HELP = "Measure top-1, top-5, images per second and size of a model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="local folder or Hub id of a float, trained or packed model")
    add_dataset(parser, required=True, purpose="evaluate")
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=32, help="images a forward pass (default: 32)"
    )
    parser.add_argument(
        "--num_workers", "--num-workers", type=int, default=0, help="processes that read images (default: 0)"
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: an accelerator where there is one)")
    parser.add_argument("--output", type=Path, help="JSON file to write the result to")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from ..data import (
        ImageClassificationDataset,
        check_input_format,
        evaluation_transform,
        held_out_split,
        load_dataset,
        model_labels,
        prepare_columns,
        select_split,
    )
    from ..evaluation import evaluate_model
    from ..job.models import load_image_processor, load_model, saved_size
    from ..job.output import write_json
    from ..job.report import ModelResult, format_table

    dataset = load_dataset(arguments.dataset, arguments.dataset_config)
    name = arguments.split or held_out_split(dataset)
    split = prepare_columns(select_split(dataset, name), arguments.image_column, arguments.label_column)
    model = load_model(arguments.model)
    processor = load_image_processor(arguments.model)
    check_input_format(processor, model.config)
    labels = model_labels(split, arguments.label_column, model.config.id2label)
    images = ImageClassificationDataset(
        split, labels, evaluation_transform(processor), image_column=arguments.image_column
    )
    evaluation = evaluate_model(
        model,
        images,
        batch_size=arguments.batch_size,
        device=arguments.device,
        num_workers=arguments.num_workers,
        progress=True,
    )
    result = ModelResult.of(evaluation, saved_size(model))
    print(
        format_table(
            [
                ["", "top-1", "top-5", "images/s", "size on disk", "images"],
                [
                    arguments.model,
                    f"{result.top1:.2f} %",
                    f"{result.top5:.2f} %",
                    f"{result.images_per_second:.1f}",
                    f"{result.size_bytes / 1000:,.1f} kB",
                    str(result.num_images),
                ],
            ]
        )
    )
    if arguments.output is not None:
        write_json(
            arguments.output,
            {
                "model": arguments.model,
                "dataset": arguments.dataset,
                "split": name,
                "device": str(model.device),
                "batch_size": arguments.batch_size,
                **vars(result),
            },
        )
    return 0
