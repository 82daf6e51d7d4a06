"""What the analyses cost: sensitivity by group beside float forward passes, and variation of a ViT-B.

Peer of the sensitivity analysis: the stock model's forward pass over the same images, as many times as there are
groups. The models are DeiT-T and ViT-B with random weights, which cost as much as trained ones.

    python benchmarks/analysis.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import write_results
from tqdm.auto import tqdm
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification

from hf_vaq import QuantConfig
from hf_vaq.analysis import analyze_sensitivity, analyze_variation
from hf_vaq.analysis.sensitivity import ALL_BUT, ONLY
from hf_vaq.tables import format_table


class RandomImages(torch.utils.data.Dataset):
    """Made anew at each access, so that a thousand of them fit into memory and are read as fast as can be."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(self.seed * self.count + index)
        return {"pixel_values": torch.randn(3, 224, 224, generator=generator), "labels": index % 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--share", type=int, default=100, help="images between two float passes (default: 100)")
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    measured = {
        "sensitivity": sensitivity(arguments.images, arguments.share, arguments.batch_size, arguments.device),
        "variation": variation(),
    }
    result = measured["sensitivity"]
    rows = [
        ["", "seconds", "float passes"],
        ["one float pass", f"{result['float_seconds']:.1f}", "1"],
        *(
            [label, f"{result[name]:.1f}", f"{result[f'{name}_ratio']:.2f}"]
            for name, label in (
                ("only", "a group, alone"),
                ("all_but", "a group, left out"),
                ("both", "a group, both"),
                ("whole", "a group, both, and its part of everything else"),
            )
        ),
        ["variation of a ViT-B", f"{measured['variation']['seconds']:.1f}", ""],
    ]
    print(format_table(rows))
    print(
        f"{result['groups']} groups, {result['images']} images; everything else is calibration, the rows of no group"
        " and reading the images"
    )
    print(f"written to {write_results('analysis', measured)}")


def sensitivity(images: int, share: int, batch_size: int, device: str) -> dict:
    """A 12-block DeiT-T at 3 bits over all kinds, blocks and heads.

    The analysis goes through the images a share at a time, with a float pass before and after each share, because a
    machine becomes faster and slower within the time that this takes. The ratios are medians over the shares; only the
    one of everything, calibration included, is of the sums.
    """
    torch.manual_seed(0)
    config = DeiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
    model = DeiTForImageClassification(config).eval().to(device)
    float_pass(model, RandomImages(2 * batch_size, 0), batch_size)  # allocates what later passes reuse
    with tempfile.TemporaryDirectory() as cache:  # so that the model is calibrated once
        shares = [
            sensitivity_of_share(model, RandomImages(min(share, images - first), 3 + first), batch_size, Path(cache))
            for first in tqdm(range(0, images, share), desc="sensitivity", unit="share")
        ]
    names = ("float_seconds", "only", "all_but", "both", "whole", "seconds")
    totals = {name: sum(part[name] for part in shares) for name in names}
    return {
        "images": images,
        "batch_size": batch_size,
        "groups": shares[0]["groups"],
        **totals,
        **{
            f"{name}_ratio": statistics.median(part[name] / part["float_seconds"] for part in shares)
            for name in ("only", "all_but", "both")
        },
        "whole_ratio": totals["whole"] / totals["float_seconds"],
        "shares": shares,
    }


def sensitivity_of_share(model: DeiTForImageClassification, data: RandomImages, batch_size: int, cache: Path) -> dict:
    """Seconds of one float pass over `data`, of a group's passes, and of the whole analysis a group."""
    before = float_pass(model, data, batch_size)
    seconds, result = timed(
        lambda: analyze_sensitivity(
            model,
            data,
            RandomImages(64, 2),
            QuantConfig(weight_bits=3, activation_bits=3),
            batch_size=batch_size,
            device=model.device,
            cache=cache,
            progress=True,
        )
    )
    table = result.table()
    table = table[table["group"] != ""]
    groups = table["group"].nunique()
    by_setting = table.groupby("setting")["forward_seconds"].mean()
    return {
        "groups": groups,
        "float_seconds": (before + float_pass(model, data, batch_size)) / 2,
        "only": by_setting[ONLY],
        "all_but": by_setting[ALL_BUT],
        "both": by_setting[ONLY] + by_setting[ALL_BUT],
        "whole": seconds / groups,
        "seconds": seconds,
    }


@torch.inference_mode()
def float_pass(model: torch.nn.Module, data: RandomImages, batch_size: int) -> float:
    """Seconds of the stock model's forward passes over all images, without reading them."""
    seconds = 0.0
    for batch in torch.utils.data.DataLoader(data, batch_size=batch_size):
        pixel_values = batch["pixel_values"].to(model.device)
        seconds += timed(lambda pixel_values=pixel_values: model(pixel_values=pixel_values).logits.sum().item())[0]
    return seconds


def variation() -> dict:
    """Weights of all layers of a ViT-B/16."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=1000))
    seconds, result = timed(lambda: analyze_variation({"vit_base": model}))
    return {"seconds": seconds, "layers": len(result.rows), "parameters": model.num_parameters()}


def timed(work: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
