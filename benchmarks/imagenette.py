"""A real ImageNet-1k checkpoint, ViT-Tiny: 8 bits by calibration alone, 4 bits after a few epochs over 2,500 photos.

Top-1 is 1000-way, over ImageNet's class numbers. Peer: the full-precision checkpoint on the same photographs.
Needs HF_VAQ_DATA, see docs/benchmarks.md.

    HF_VAQ_DATA=path/to/data python benchmarks/imagenette.py

Fields of the recipes follow as on the command line of `hf-vaq train`, such as `--bf16 true --use_cpu true`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from reporting import data_folder, write_results

from hf_vaq.job import RunResult, run_recipe
from hf_vaq.recipe import load_recipe
from hf_vaq.tables import format_table

RECIPES = ("imagenette/vit_tiny_w8a8", "imagenette/vit_tiny_w4a4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    arguments, fields = parser.parse_known_args()
    model, dataset = data_folder("vit_tiny_patch16_224_in1k", "imagenette_small")
    rows = [["recipe", "full precision", "packed", "difference", "size on disk", "seconds"]]
    measured = []
    for recipe in arguments.recipes:
        result = run(recipe, model, dataset, fields)
        # The folders of the data lie elsewhere on every machine.
        measured.append(result.to_dict() | {"dataset": Path(dataset).name})
        rows.append(
            [
                recipe,
                f"{result.full_precision.top1:.2f}",
                f"{result.quantized.top1:.2f}",
                f"{result.difference:+.2f}",
                f"1 / {result.full_precision.size_bytes / result.quantized.size_bytes:.1f}",
                f"{result.seconds['total']:.0f}",
            ]
        )
        print(format_table(rows), flush=True)
    print(f"written to {write_results('imagenette', measured)}")


def run(recipe: str, model: str, dataset: str, fields: list[str]) -> RunResult:
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["--model", model, "--dataset", dataset, "--output_dir", str(Path(folder) / "run"), *fields]
        return run_recipe(load_recipe(recipe, overrides), report=print)


if __name__ == "__main__":
    main()
