"""The claims of "Quantization Variation" (arXiv 2307.00331) on models at hand: docs/analysis/claims.md.

It trains `digits/vit_w2a2` with three weights of the bin regularizer, and runs the three analyses on what comes out,
on real ImageNet-1k models (a ViT-Tiny and an EfficientNet-Lite2) and on a small CIFAR-10 ViT. Steps whose results lie
in the folder already are not repeated.

    HF_VAQ_DATA=path/to/data python benchmarks/analysis_claims.py outputs/claims
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from reporting import data_folder, write_results

from hf_vaq.cli import main as hf_vaq

LAMBDAS = {"vit_w2a2": 0.01, "no_regularizer": 0.0, "strong_regularizer": 1.0}
KINDS = ("ffn", "mhsa", "query", "key", "value", "attention_probabilities", "attention_output")
SENSITIVITY_OF_VIT = ("--bits", "4", "--max_images", "100", "--calibration_images", "64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs and analyses go")
    folder = parser.parse_args().folder
    vit, cifar_vit, cnn, images = data_folder(
        "vit_tiny_patch16_224_in1k", "cifar10_vit_tiny", "efficientnet_lite2_in1k", "imagenette_small"
    )
    runs = {name: folder / "runs" / name for name in LAMBDAS}
    for name, run in runs.items():
        if not (run / "results.json").exists():
            words = ["digits/vit_w2a2", "--bin_regularization", str(LAMBDAS[name]), "--output_dir", str(run)]
            command(["train", *words, "--disable_tqdm", "true"])
    start = [str(runs["vit_w2a2"] / "float"), "--dataset", "digits", "--bits", "2"]
    blocks = ["first_layer", "last_layer", "block.?", "block.1?"]
    measured = {
        "oscillation": analysis(folder, "oscillation", "oscillation", *map(str, runs.values())),
        "digits": analysis(folder, "sensitivity", "digits", *start, "--suggest-bits", "3"),
        "digits_trained": analysis(
            folder, "sensitivity", "digits_trained", *start, "--groups", *KINDS, "--train-steps", "100",
            "--learning-rate", "5e-4",
        ),
        "vit_tiny": analysis(
            folder, "sensitivity", "vit_tiny", vit, "--dataset", images, "--label_column", "imagenet_label",
            *SENSITIVITY_OF_VIT, "--groups", *KINDS, *blocks,
        ),
        "variation": analysis(
            folder, "variation", "variation", vit, cifar_vit, cnn, "--dataset", images, "--max_images", "48"
        ),
    }  # fmt: skip
    measured["runs"] = {name: json.loads((run / "results.json").read_text()) for name, run in runs.items()}
    print(f"written to {write_results('analysis_claims', without_paths(measured, folder))}")


def analysis(folder: Path, kind: str, name: str, *words: str) -> dict:
    """Run `hf-vaq analyze`, or take what it left earlier."""
    results = folder / name / "results.json"
    if not results.exists():
        command(["analyze", kind, *words, "--output", str(folder / name)])
    return json.loads(results.read_text())


def command(words: list[str]) -> None:
    if hf_vaq(words) != 0:
        sys.exit(f"failed: hf-vaq {' '.join(words)}")


def without_paths(measured: dict, folder: Path) -> dict:
    """A results file names no path of some machine."""
    text = json.dumps(measured)
    for path, name in ((str(folder), "FOLDER"), (os.environ["HF_VAQ_DATA"].rstrip("/"), "HF_VAQ_DATA")):
        text = text.replace(path, name)
    return json.loads(text)


if __name__ == "__main__":
    main()
