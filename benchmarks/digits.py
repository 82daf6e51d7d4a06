"""The main job over three seeds, beside plain LSQ with cross-entropy.

Peer: `recipes/digits/vit_w2a2_lsq.yaml`, the same model, data, bits and number of steps, but LSQ's scale gradients, no
teacher and no regularizer. Both start from the same full-precision model of their seed.

    python benchmarks/digits.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from reporting import write_results

from hf_vaq.job import RunResult, run_recipe
from hf_vaq.recipe import load_recipe
from hf_vaq.tables import format_table

RECIPES = {"variation-aware": "digits/vit_w2a2", "plain LSQ": "digits/vit_w2a2_lsq"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = [["seed", "full precision", *(f"W2A2 {name}" for name in RECIPES), "seconds"]]
    measured = []
    for seed in arguments.seeds:
        results = {name: run(recipe, seed) for name, recipe in RECIPES.items()}
        measured.append({"seed": seed} | {name: result.to_dict() for name, result in results.items()})
        ours = results["variation-aware"]
        rows.append(
            [
                str(seed),
                f"{ours.full_precision.top1:.2f}",
                *(f"{r.quantized.top1:.2f} ({r.difference:+.2f})" for r in results.values()),
                f"{ours.seconds['total']:.0f}",
            ]
        )
        print(format_table(rows), flush=True)
    print(f"written to {write_results('digits', measured)}")


def run(recipe: str, seed: int) -> RunResult:
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["--seed", str(seed), "--output_dir", str(Path(folder) / "run"), "--disable_tqdm", "true"]
        return run_recipe(load_recipe(recipe, overrides))


if __name__ == "__main__":
    main()
