"""What the ImageNet recipes cost: images, operations, time of a step, input pipeline, label store, communication.

Nothing is measured here. The tables are computed from the recipes and from measured rates in results/:
training_step_amd.json (time of a step), input_pipeline.json (decoding, a core) and soft_labels.json (labels). They are
the tables of docs/scaling.md, where --write puts them.

    python benchmarks/scaling_costs.py
    python benchmarks/scaling_costs.py --write
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from reporting import RESULTS, markdown_table, write_section
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    PretrainedConfig,
    SwinConfig,
    SwinForImageClassification,
)

from hf_vaq.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- computed by benchmarks/scaling_costs.py -->", "<!-- end -->"

STEP = "training_step_amd"
"""Results of which machine's training step are taken."""
IMAGENET_1K, IMAGENET_22K = 1_281_167, 14_197_122
GPUS = 4
"""The recipes' batches are for so many."""
DEIT_TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
DEIT_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
CONFIGS: dict[str, PretrainedConfig] = {
    "facebook/deit-tiny-patch16-224": DeiTConfig(num_labels=1000, **DEIT_TINY),
    "facebook/deit-small-patch16-224": DeiTConfig(num_labels=1000, **DEIT_SMALL),
    "microsoft/swin-tiny-patch4-window7-224": SwinConfig(num_labels=1000),
    "microsoft/swin-small-patch4-window7-224": SwinConfig(num_labels=1000, depths=[2, 2, 18, 2]),
}
CLASSES = {DeiTConfig: DeiTForImageClassification, SwinConfig: SwinForImageClassification}
MEASURED = {
    "deit": ("facebook/deit-tiny-patch16-224", "deit-t", 16),
    "swin": ("microsoft/swin-tiny-patch4-window7-224", "swin-t", 4),
}
"""The model of each family whose step is measured, its name in the results of `STEP`, and its batch."""


def main() -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    text = tables()
    if arguments.write:
        write_section(PAGE, BEGIN, END, text)
        print(f"written to {PAGE.relative_to(ROOT)}")
    else:
        print(text)


def tables() -> str:
    """All tables, in Markdown."""
    parts = [recipe_table(), input_table(), communication_table()]
    return "\n\n".join(parts)


def results(name: str) -> dict[str, Any] | None:
    """What a benchmark measured; None if it has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["measured"] if path.exists() else None


@cache
def operations_and_parameters(model: str) -> tuple[float, int]:
    """Floating-point operations of a forward pass of one image, and parameters."""
    with torch.device("meta"):
        network = CLASSES[type(CONFIGS[model])](CONFIGS[model]).eval()
        with FlopCounterMode(display=False) as counter:
            network(pixel_values=torch.empty(1, 3, 224, 224))
    return counter.get_total_flops(), sum(parameter.numel() for parameter in network.parameters())


def recipe_table() -> str:
    """A row a recipe: what a run comes to on the machine whose training step was measured."""
    ways = {"as it is (bf16)": ", bf16 autocast", "with `torch_compile`": ", compiled, bf16 autocast"}
    header = ["recipe", "images seen", "forward pass of an image"]
    measured = results(STEP)
    if measured is not None:
        header += [f"one epoch {way}" for way in ways]
    rows = [header]
    for path in sorted((ROOT / "recipes" / "imagenet").glob("*.yaml")):
        recipe = load_recipe(path, ["--use_cpu"])  # nothing is run, so no GPU is needed
        model, epochs = recipe.model.model, recipe.training.num_train_epochs
        # Steps are measured at 4 and 2 bits; 3 bits cost what 4 do, because training computes with floats.
        bits = 2 if recipe.quantization.weight_bits == 2 else 4
        operations, _ = operations_and_parameters(model)
        row = [f"`{path.stem}`", f"{epochs * IMAGENET_1K / 1e6:,.0f} M", f"{operations / 1e9:.1f} GFLOP"]
        if measured is not None:
            for way in ways.values():
                time = milliseconds_an_image(measured, model, f"W{bits}A{bits}, regularized{way}")
                hours = "not measured" if time is None else f"{IMAGENET_1K * time / 3.6e6:,.0f} h"
                row.append(hours if time is None or is_measured(model) else f"~ {hours}")
        rows.append(row)
    return markdown_table(rows)


def family(model: str) -> tuple[str, str, int]:
    """The measured model of the same family, its name in the results of `STEP`, and the batch it is measured with."""
    return MEASURED[model.partition("/")[2].partition("-")[0]]


def is_measured(model: str) -> bool:
    """Whether the step of this very model is measured, and not scaled from a smaller one by their operations."""
    return family(model)[0] == model


def milliseconds_an_image(measured: dict[str, Any], model: str, candidate: str) -> float | None:
    """Time of a training step, divided by its images; None if it is not in the results."""
    reference, name, batch = family(model)
    row = next((row for row in measured.get(name, []) if row["candidate"] == candidate), None)
    if row is None:
        return None
    ratio = operations_and_parameters(model)[0] / operations_and_parameters(reference)[0]
    return row["milliseconds"] / batch * ratio


def input_table() -> str:
    """What it takes to feed a rate of images: processor cores, bytes, labels."""
    pipeline, labels = results("input_pipeline"), results("soft_labels")
    if pipeline is None or labels is None:
        return ""
    times, crops = pipeline["milliseconds_an_image"], pipeline["crops"]
    online = times["decode and vary"]
    stored = times[f"decode and cut {crops} stored crops"] / crops
    reading = 1000 / labels["reading"]["store_a_second"]
    row = next(row for row in labels["epoch"]["rows"] if row["labels"] == f"{crops}, stored labels")
    recovering = row["milliseconds"]["read labels"]
    header = ["images or crops a second", "cores, an image at a time", f"cores, {crops} stored crops an image",
              "read, MB/s", f"read with {crops} crops, MB/s"]  # fmt: skip
    rows = [header]
    for rate in (1_000, 4_000, 16_000):
        rows.append(
            [
                f"{rate:,}",
                f"{rate * online / 1000:.1f}",
                f"{rate * (stored + recovering) / 1000:.1f}",
                f"{rate * pipeline['bytes_an_image'] / 1e6:,.0f}",
                f"{rate * pipeline['bytes_an_image'] / crops / 1e6:,.0f}",
            ]
        )
    size = labels["size"]["bytes_a_crop_on_disk"]
    stores = [["label store", "crops of an image", "size"]]
    for name, images, count in (
        ("ImageNet-1k", IMAGENET_1K, 500),
        ("ImageNet-1k", IMAGENET_1K, 150),
        ("ImageNet-22k", IMAGENET_22K, 20),
        ("ImageNet-22k", IMAGENET_22K, 90),
    ):
        stores.append([name, f"{count}", f"{images * count * size / 1e9:,.1f} GB"])
    note = (
        f"\nOne core decodes and varies an image of {pipeline['width']} x {pipeline['height']} in {online:.2f} ms, and"
        f" decodes it and cuts {crops} crops in {stored * crops:.2f} ms; it reads the labels of an image in"
        f" {reading:.3f} ms, and the labels of a crop, read and spread over all classes, take {recovering:.3f} ms.\n"
    )
    return f"{markdown_table(rows)}\n{note}\n{markdown_table(stores)}"


def communication_table() -> str:
    """Bytes that a process sends a step for each way of distributing, and how long they take."""
    rows = [["model", "parameters", "DDP, ZeRO-2", "FSDP2", "DDP at 10 Gbit/s", "at 100 Gbit/s", "at 400 Gbit/s"]]
    share = (GPUS - 1) / GPUS
    for model in CONFIGS:
        _, parameters = operations_and_parameters(model)
        whole = 4 * parameters * share
        # A ring all-reduce is a reduce-scatter and an all-gather. FSDP2 gathers for the forward and the backward pass,
        # for the regularizer and the tracker, and scatters the gradients.
        ddp, fsdp = 2 * whole, 5 * whole
        speeds = [f"{ddp * 8 / speed / 1e9 * 1000:,.1f} ms" for speed in (10, 100, 400)]
        sizes = [f"{parameters / 1e6:.1f} M", f"{ddp / 1e6:,.0f} MB", f"{fsdp / 1e6:,.0f} MB"]
        rows.append([f"`{model.partition('/')[2]}`", *sizes, *speeds])
    return markdown_table(rows)


if __name__ == "__main__":
    main()
