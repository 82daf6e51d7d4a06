"""`hf-vaq analyze sensitivity MODEL --dataset D --bits 3`."""

from __future__ import annotations

import argparse
import copy
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

HELP = "Quantize every group of modules alone, and everything but it: which suffer most?"
OVERRIDES = "module_overrides.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="local folder or Hub id of a full-precision model")
    add_data_arguments(
        parser, required=True, max_images=1000, images_help="images to measure on, chosen at random (default: 1000)"
    )
    parser.add_argument(
        "--train_split", "--train-split", default="train", help="split for calibration and training (default: train)"
    )
    parser.add_argument("--bits", type=int, default=4, help="bits of weights and activations (default: 4)")
    parser.add_argument(
        "--edge_bits", "--edge-bits", type=int, default=8, help="bits of first and last layer (default: 8)"
    )
    for name in ("weight", "activation"):
        parser.add_argument(
            f"--{name}_granularity",
            f"--{name}-granularity",
            default="tensor",
            help="what shares a scale: tensor, head"
            + (" or channel" if name == "weight" else "")
            + " (default: tensor)",
        )
    parser.add_argument(
        "--no_quantized_attention",
        "--no-quantized-attention",
        action="store_true",
        help="quantize linear layers only, as is needed for models other than the supported ones",
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        metavar="PATTERN",
        help="groups to measure, such as ffn mhsa 'block.*' 'block.*.head.*' (default: all)",
    )
    parser.add_argument(
        "--calibration_images",
        "--calibration-images",
        type=int,
        default=256,
        help="training images that set the activation scales (default: 256)",
    )
    parser.add_argument(
        "--train_steps", "--train-steps", type=int, default=0, help="measure again after so many steps (default: 0)"
    )
    parser.add_argument(
        "--train_batch_size", "--train-batch-size", type=int, default=32, help="images a step (default: 32)"
    )
    parser.add_argument(
        "--learning_rate", "--learning-rate", type=float, default=1e-4, help="of that training (default: 1e-4)"
    )
    parser.add_argument(
        "--suggest_bits",
        "--suggest-bits",
        metavar="BUDGET",
        help="propose bits for every block: an average such as 3.5, or the size of the packed model, such as 900kB",
    )
    add_compute_arguments(parser, batch_size=50)
    add_common_arguments(parser, "outputs/analysis/sensitivity/<model>")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and write the folder."""
    from ...analysis import Budget, Switchboard, TrainingBudget, analyze_sensitivity, suggest_bits
    from ...analysis.extra import load_extra
    from ...analysis.groups import find_groups
    from ...analysis.preparing import check_full_precision, random_subset
    from ...analysis.report.sensitivity import sensitivity_report
    from ...analysis.report.writing import CACHE, claim_folder
    from ...config import QuantConfig
    from ...data import check_input_format
    from ...integration import quantize
    from ...job.models import load_image_processor, load_model
    from ...job.output import write_text

    load_extra("matplotlib")
    config = QuantConfig(
        weight_bits=arguments.bits,
        activation_bits=arguments.bits,
        edge_bits=arguments.edge_bits,
        weight_granularity=arguments.weight_granularity,
        activation_granularity=arguments.activation_granularity,
        quantize_attention=not arguments.no_quantized_attention,
    )
    budget = TrainingBudget(arguments.train_steps, arguments.train_batch_size, arguments.learning_rate, arguments.seed)
    bits_budget = None if arguments.suggest_bits is None else Budget.parse(arguments.suggest_bits)
    held_out = split_of(arguments, arguments.split)
    train = split_of(arguments, arguments.train_split)
    model = load_model(arguments.model)
    check_full_precision(model)
    processor = load_image_processor(arguments.model)
    check_input_format(processor, model.config)

    name = short_name(arguments.model)
    folder = arguments.output or Path("outputs/analysis/sensitivity") / name
    # Training images are not varied: how far that may go (a mirrored digit is no digit) is for a recipe to say.
    training_set = train.evaluation_set(model.config.id2label, processor)
    images = random_subset(
        held_out.evaluation_set(model.config.id2label, processor), arguments.max_images, arguments.seed
    )
    calibration = random_subset(training_set, arguments.calibration_images, arguments.seed)
    claim_folder(folder, (OVERRIDES,))
    options = {
        "batch_size": arguments.batch_size,
        "device": arguments.device,
        "cache": folder / CACHE,
        "progress": True,
    }
    if arguments.groups is not None:
        # Suggested bits come first, so a name that matches nothing has to be found before them.
        trial = quantize(copy.deepcopy(model), copy.deepcopy(config))
        find_groups(trial, Switchboard(trial), arguments.groups)
    suggestion = None
    if bits_budget is not None:
        suggestion = suggest_bits(model, images, calibration, bits_budget, config, **options)
        write_text(folder / OVERRIDES, suggestion.to_yaml())
    result = analyze_sensitivity(
        model,
        images,
        calibration,
        config,
        groups=arguments.groups,
        budget=budget,
        train_images=training_set,
        **options,
    )
    facts = {
        "Model": str(arguments.model),
        "Measured on": f"{result.images} images of {arguments.dataset}, split {held_out.name}",
        "Calibrated on": f"{len(calibration)} images, split {arguments.train_split}",
        "Bits": f"{arguments.bits} in the blocks, {arguments.edge_bits} in first and last layer",
        "Scales": f"weights by {config.weight_granularity}, activations by {config.activation_granularity}",
        "Versions": ", ".join(f"{key} {value}" for key, value in versions().items()),
    }
    if budget.steps:
        facts["Training"] = (
            f"{budget.steps} steps of {budget.batch_size} images, learning rate {budget.learning_rate:g}"
        )
    report = sensitivity_report(name, result, facts, command_of(arguments), suggestion)
    results = {
        "analysis": "sensitivity",
        "command": command_of(arguments),
        "model": str(arguments.model),
        "dataset": arguments.dataset,
        "split": held_out.name,
        "images": result.images,
        "config": result.config,
        "training": vars(budget),
        "rows": [vars(row) for row in result.rows],
        "suggestion": None if suggestion is None else vars(suggestion),
        "versions": versions(),
    }
    finish(folder, report, results, {"sensitivity": result.table()})
    if suggestion is not None:
        print(f"Suggested bits, {suggestion.average_bits:.2f} on average, for a recipe: {folder / OVERRIDES}")
    return 0
