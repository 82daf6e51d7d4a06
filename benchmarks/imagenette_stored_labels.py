"""A CNN's stored labels against the same CNN online, on a real ViT-Tiny at 4 bits and 2,500 photographs.

The recipe imagenette/vit_tiny_w4a4_stored_labels, taught by an EfficientNet-Lite2 (260 px, another normalisation), as
it is; and its peer: single-crop distillation with the CNN online, the same crops of the same share of the picture, the
same number of crops and steps. With `label_crops` equal to the epochs the teacher labels each crop that is trained on,
so both cost the same; the seconds of labelling and training are given apart, because a second run needs no labelling.

Needs HF_VAQ_DATA, see docs/benchmarks.md, and timm.

    HF_VAQ_DATA=path/to/data python benchmarks/imagenette_stored_labels.py

Fields of the recipe follow as on the command line of `hf-vaq train`, such as `--bf16 true --use_cpu true`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from reporting import data_folder, write_results

from hf_vaq.job import RunResult, run_recipe
from hf_vaq.job.label import label_recipe
from hf_vaq.recipe import load_recipe
from hf_vaq.tables import format_table

RECIPE = "imagenette/vit_tiny_w4a4_stored_labels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label_crops", type=int, default=4, help="crops of a photograph; the recipe trains on 3")
    arguments, fields = parser.parse_known_args()
    model, teacher, dataset = data_folder("vit_tiny_patch16_224_in1k", "efficientnet_lite2_in1k", "imagenette_small")
    common = ["--model", model, "--teacher", teacher, "--dataset", dataset, *fields]
    rows = [["", "full precision", "packed", "seconds of labelling", "seconds of training"]]
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        stored = [*common, "--soft_labels", f"{folder}/labels", "--label_crops", str(arguments.label_crops)]
        started = time.perf_counter()
        store = label_recipe(load_recipe(RECIPE, stored), report=print)
        labelling = time.perf_counter() - started
        # The peer varies its pictures as the crops were drawn: online crops have the same smallest share.
        share = str(store.settings.crop_scale[0])
        online = [*common, "--soft_labels", "none", "--crop_scale", share]
        for name, overrides, seconds in (
            ("stored labels, 4 crops of a photograph", stored, labelling),
            ("online teacher, single crops", online, 0.0),
        ):
            recipe = load_recipe(RECIPE, [*overrides, "--output_dir", f"{folder}/{len(rows)}"])
            result = run_recipe(recipe, report=print)
            training = result.seconds[result.bits]
            rows.append(
                [
                    name,
                    f"{result.full_precision.top1:.2f}",
                    f"{result.quantized.top1:.2f}",
                    f"{seconds:.0f}",
                    f"{training:.0f}",
                ]
            )
            measured[name] = entry(result, Path(dataset).name) | {"seconds_of_labelling": seconds}
            print(format_table(rows), flush=True)
    print(f"written to {write_results('imagenette_stored_labels', measured)}")


def entry(result: RunResult, dataset: str) -> dict[str, Any]:
    """What is kept of a run; the folders of the data lie elsewhere on every machine."""
    return result.to_dict() | {"dataset": dataset}


if __name__ == "__main__":
    main()
