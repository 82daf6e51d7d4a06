"""`hf-vaq label RECIPE [--field value ...]`: store a teacher's soft labels of many crops of the training images."""

from __future__ import annotations

import argparse
import sys

from .shared_arguments import add_recipe

HELP = "Label crops of a recipe's training images with its teacher, once, for training from the stored labels."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe."""
    add_recipe(parser, "label")


def run(arguments: argparse.Namespace) -> int:
    """Label, or go on with an interrupted labelling, and print what the store holds."""
    from ..recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from accelerate import PartialState

    from ..job.label import label_recipe
    from ..tables import format_table

    store = label_recipe(recipe, report=lambda message: print(f"hf-vaq: {message}", file=sys.stderr, flush=True))
    if PartialState().is_main_process:
        settings, metadata = store.settings, store.metadata
        classes = f"all {store.num_classes}" if settings.top_k is None else f"top {settings.top_k}"
        rows = [
            ["images", "crops an image", "classes", "shards", "bytes a crop", "size on disk"],
            [
                f"{len(store):,}",
                f"{settings.crops_per_image:,}",
                classes,
                f"{len(metadata.shards):,}",
                f"{metadata.bytes_per_crop:.2f}",
                f"{metadata.num_bytes / 1e6:,.1f} MB",
            ],
        ]
        print(f"\n{format_table(rows)}\nWritten to {store.folder}: README.md, soft_labels.json, data/")
    return 0
