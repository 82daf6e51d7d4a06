"""What a processor core does with the images of ImageNet: decoding and varying them, and crops for stored labels.

Times one core, without worker processes, on JPEG files of 500 x 375, the commonest size of ImageNet's images, put
together from photographs of 224 x 224 side by side: enlarged ones would be smoother than photographs are, and decode
faster. No peer: docs/scaling.md needs the rates. Writes results/input_pipeline.json.

Needs HF_VAQ_DATA, see docs/benchmarks.md.

    HF_VAQ_DATA=path/to/data OMP_NUM_THREADS=1 python benchmarks/input_pipeline.py
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from reporting import data_folder, write_results
from transformers import ViTImageProcessor

from hf_vaq.data import Augmentation, load_dataset, training_transform
from hf_vaq.soft_labels.crops import INTERPOLATIONS, CropSampling, cut_crop, draw_crops
from hf_vaq.tables import format_table

SIZE = (500, 375)
IMAGES = 64
CROPS = 4


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repetitions of every part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoded = photographs()
    transform = training_transform(ViTImageProcessor(), Augmentation())
    parts: dict[str, Callable[[bytes], Any]] = {
        "decode": decode,
        "decode and vary": lambda data: transform(decode(data)),
        f"decode and cut {CROPS} stored crops": decode_and_cut,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for round_number in range(arguments.rounds + 1):
        for name, part in parts.items():
            started = time.perf_counter()
            for data in encoded:
                part(data)
            if round_number:  # the first round warms up
                times[name].append((time.perf_counter() - started) / len(encoded) * 1000)
    milliseconds = {name: round(statistics.median(values), 4) for name, values in times.items()}
    size = sum(map(len, encoded)) / len(encoded)
    rows = [["one core", "ms an image", "images a second"]]
    rows += [[name, f"{value:.2f}", f"{1000 / value:,.0f}"] for name, value in milliseconds.items()]
    print(format_table(rows))
    measured = {
        "width": SIZE[0],
        "height": SIZE[1],
        "bytes_an_image": round(size),
        "crops": CROPS,
        "milliseconds_an_image": milliseconds,
    }
    print(f"written to {write_results('input_pipeline', measured)}")


def photographs() -> list[bytes]:
    """JPEG files of the size of ImageNet's, each a part of six photographs side by side."""
    (folder,) = data_folder("imagenette_small")
    images = load_dataset(folder)["train"].select(range(6 * IMAGES))["image"]
    encoded = []
    for first in range(0, 6 * IMAGES, 6):
        whole = Image.new("RGB", (3 * 224, 2 * 224))
        for place in range(6):
            whole.paste(images[first + place].convert("RGB"), (place % 3 * 224, place // 3 * 224))
        file = io.BytesIO()
        whole.crop((0, 0, *SIZE)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def decode_and_cut(data: bytes) -> list[Any]:
    """Crops as `SoftLabelDataset` cuts them: the image is decoded once for all of them."""
    image = decode(data)
    boxes, flips = draw_crops(CropSampling(), len(data), CROPS, *image.size)
    crops = zip(boxes, flips, strict=True)
    return [cut_crop(image, box, flip, (224, 224), INTERPOLATIONS["bilinear"]) for box, flip in crops]


if __name__ == "__main__":
    main()
