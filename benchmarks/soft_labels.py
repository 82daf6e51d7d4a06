"""Stored soft labels against a teacher that runs during training: time, where it goes, bytes, reading, memory.

Four parts, printed as tables and written to results/soft_labels.json:

1. Training time per crop of a W4A4 ViT-Tiny at 224 px on real photographs (weights random: only time counts). Peer: an
   online teacher, ViT-Base (15 times the parameters), with single crops. Against it: stored labels with 1, 2, 4 and 8
   crops of an image. No worker processes, so that the parts of a step can be told apart.
2. Bytes a crop, and what ImageNet-1k comes to.
3. Labels of an image read per second in random order. Peer: one torch.load of a small file an image.
4. Memory of a process that reads, for a store and for one of 20 times its size.

Needs HF_VAQ_DATA, see docs/benchmarks.md.

    HF_VAQ_DATA=path/to/data python benchmarks/soft_labels.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reporting import data_folder, write_results
from transformers import PrinterCallback, TrainerCallback, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_vaq import QuantConfig, VaqTrainer, VaqTrainingArguments, quantize
from hf_vaq.data import (
    Augmentation,
    ImageClassificationDataset,
    load_dataset,
    model_labels,
    prepare_columns,
    select_split,
    training_transform,
)
from hf_vaq.data import dataset as online_data
from hf_vaq.soft_labels import SoftLabelStore, label_dataset
from hf_vaq.soft_labels import dataset as stored_data
from hf_vaq.soft_labels.images import EncodedImage, EncodedImages
from hf_vaq.soft_labels.metadata import Shard
from hf_vaq.soft_labels.store import file_checksum
from hf_vaq.tables import format_table

CROPS = 500
CLASSES = 1000
NUM_CROPS = (1, 2, 4, 8)
TEACHERS = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
IMAGENET = 1_281_167
FKD_GIGABYTES = 36
PARTS = ("read and decode", "crop", "read labels", "teacher", "forward and backward", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="photographs; also the crops of an epoch")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--teacher", choices=TEACHERS, default="base")
    parser.add_argument("--reads", type=int, default=20_000, help="random reads of labels")
    parser.add_argument("--measure_reader", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_reader:
        print(json.dumps(reader_memory(arguments.measure_reader, arguments.reads)))
        return
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    (dataset,) = data_folder("imagenette_small")
    split = select_split(load_dataset(dataset), f"train[:{arguments.images}]")
    split = prepare_columns(split, "image", "imagenet_label")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(split, Path(folder) / "store")
        measured = {
            "epoch": measure_epochs(split, store, arguments),
            "size": measure_size(store),
            "reading": measure_reading(store, Path(folder), arguments.reads),
            "memory": measure_memory(store, Path(folder), arguments.reads),
        }
    print(f"written to {write_results('soft_labels', measured)}")


def make_store(split: Any, folder: Path) -> SoftLabelStore:
    """Label with a teacher that costs next to nothing: what labels say does not change what they take."""
    print(f"labelling {CROPS} crops of {len(split)} images with a tiny teacher", flush=True)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        image_size=16,
        num_labels=CLASSES,
    )
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    return label_dataset(
        split,
        ViTForImageClassification(config),
        folder,
        teacher_processor=processor,
        crops_per_image=CROPS,
        top_k=5,
        batch_size=CROPS,
        images_per_shard=32,
        dataset_name="imagenette_small",
        progress=True,
    )


# 1. An epoch


class Stopwatch:
    """Adds up the time inside functions, by part; where one calls another, only the inner part counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[part] += elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, original))

    def unwrap(self) -> None:
        for undo in self._undo:
            undo()


class AfterFirstStep(TrainerCallback):
    """Starts the clock after the first step, which pays for everything that happens once."""

    def __init__(self, watch: Stopwatch):
        self.watch = watch
        self.started = self.total = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if state.global_step == 1:
            self.started = now
            self.watch.seconds.clear()
        self.total = now - self.started


def vit(size: tuple[int, int, int]) -> ViTForImageClassification:
    width, layers, heads = size
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config)


def measure_epochs(split: Any, store: SoftLabelStore, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = [["crops of an image in a batch", "ms a crop", "times as fast", *PARTS]]
    teacher = vit(TEACHERS[arguments.teacher])
    student = vit((192, 12, 3))
    ratio = sum(p.numel() for p in teacher.parameters()) / sum(p.numel() for p in student.parameters())
    print(f"\nonline teacher: ViT-{arguments.teacher}, {ratio:.1f} times the student's parameters")
    online, measured = 0.0, []
    for num_crops in (None, *NUM_CROPS):
        parts = train(split, store, num_crops, teacher, arguments)
        total = sum(parts.values())
        online = online or total
        name = "1, online teacher" if num_crops is None else f"{num_crops}, stored labels"
        shares = [f"{1000 * parts[part]:.2f}" for part in PARTS]
        rows.append([name, f"{1000 * total:.1f}", f"{online / total:.2f}", *shares])
        measured.append({"labels": name, "milliseconds_a_crop": 1000 * total, "times_as_fast": online / total})
        measured[-1] |= {"milliseconds": {part: 1000 * parts[part] for part in PARTS}}
        print(format_table(rows), flush=True)
        print(f"reading labels: {100 * parts['read labels'] / total:.2f} % of the time", flush=True)
    return {"teacher": f"ViT-{arguments.teacher}", "teacher_to_student_parameters": ratio, "rows": measured}


def train(
    split: Any, store: SoftLabelStore, num_crops: int | None, teacher: Any, arguments: argparse.Namespace
) -> dict[str, float]:
    """Train an epoch and one more step before it; seconds a crop by part."""
    processor = ViTImageProcessor()
    student = quantize(vit((192, 12, 3)), QuantConfig(weight_bits=4, activation_bits=4))
    watch = Stopwatch()
    watch.wrap(EncodedImages, "__getitem__", "read and decode")
    watch.wrap(EncodedImage, "decode", "read and decode")
    watch.wrap(online_data.ImageClassificationDataset, "_decode", "read and decode")
    watch.wrap(stored_data, "cut_crop", "crop")
    watch.wrap(stored_data, "normalize_pixels", "crop")
    watch.wrap(SoftLabelStore, "__getitem__", "read labels")
    watch.wrap(stored_data, "recover_probabilities", "read labels")
    watch.wrap(VaqTrainer, "training_step", "forward and backward")
    steps = arguments.images // arguments.batch_size
    with tempfile.TemporaryDirectory() as folder:
        args = VaqTrainingArguments(
            folder,
            max_steps=steps + 1,
            per_device_train_batch_size=arguments.batch_size,
            calibration_batches=1,
            bin_regularization=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            label_names=["labels"],
        )
        if num_crops is None:
            transform = training_transform(processor, Augmentation(crop_scale=0.08))
            images = TimedTransform(split, model_labels(split, "imagenet_label", student.config.id2label), transform)
            watch.wrap(TimedTransform, "transformed", "crop")
            trainer = VaqTrainer(student, args, train_dataset=images, processing_class=processor, teacher=teacher)
            watch.wrap(trainer.teacher, "forward", "teacher")
        else:
            images = split.select_columns(["image"])
            trainer = VaqTrainer(
                student, args, train_dataset=images, processing_class=processor, soft_labels=store, num_crops=num_crops
            )
        clock = AfterFirstStep(watch)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    watch.unwrap()
    parts = {part: watch.seconds[part] for part in PARTS}
    parts["rest"] = clock.total - sum(parts.values())
    return {part: seconds / (steps * arguments.batch_size) for part, seconds in parts.items()}


class TimedTransform(ImageClassificationDataset):
    """The transform as a method, where a stopwatch can be put around it."""

    def __init__(self, split: Any, labels: np.ndarray, transform: Any):
        super().__init__(split, labels, self.transformed_now)
        self._real = transform

    def transformed_now(self, image: Any) -> torch.Tensor:
        return self.transformed(image)

    def transformed(self, image: Any) -> torch.Tensor:
        return self._real(image)


# 2. Bytes


def measure_size(store: SoftLabelStore) -> dict[str, float]:
    exact, on_disk = store.settings.layout.bytes_per_crop, store.metadata.bytes_per_crop
    rows = [["", "bytes a crop", "ImageNet-1k x 500", "ImageNet-1k x 5,000"]]
    for name, count in (("box, flip, top 5", exact), ("on disk", on_disk)):
        gigabytes = count * IMAGENET * 500 / 1e9
        rows.append([name, f"{count:.2f}", f"{gigabytes:.1f} GB", f"{10 * gigabytes:.0f} GB"])
    theirs = FKD_GIGABYTES * 1e9 / IMAGENET / 500
    rows.append(["published, one pickle an image", f"{theirs:.1f}", f"{FKD_GIGABYTES} GB", f"{10 * FKD_GIGABYTES} GB"])
    print(f"\n{format_table(rows)}", flush=True)
    return {
        "bytes_a_crop": exact,
        "bytes_a_crop_on_disk": on_disk,
        "imagenet_500_gigabytes": on_disk * IMAGENET * 5e-7,
    }


# 3. Reading


def measure_reading(store: SoftLabelStore, folder: Path, reads: int) -> dict[str, float]:
    files = folder / "files"
    files.mkdir()
    for index in range(len(store)):
        labels = store[index]
        content = {
            "boxes": torch.from_numpy(labels.boxes.astype(np.float32) / 65535),
            "flips": torch.from_numpy(labels.flips),
            "classes": torch.from_numpy(labels.classes.astype(np.int16)),
            "probabilities": torch.from_numpy(labels.probabilities.astype(np.float32)),
        }
        torch.save(content, files / f"{index}.pt")
    order = np.random.default_rng(0).integers(0, len(store), reads).tolist()

    def rate(read: Callable[[int], Any]) -> float:
        for index in range(len(store)):
            read(index)
        started = time.perf_counter()
        for index in order:
            read(index)
        return reads / (time.perf_counter() - started)

    ours, theirs = rate(store.__getitem__), rate(lambda index: torch.load(files / f"{index}.pt"))
    rows = [["", f"images' labels a second ({CROPS} crops each)"], ["store", f"{ours:,.0f}"]]
    rows += [["one torch.load a file", f"{theirs:,.0f}"], ["ratio", f"{ours / theirs:.1f}"]]
    print(f"\n{format_table(rows)}", flush=True)
    return {"store_a_second": ours, "torch_load_a_second": theirs, "ratio": ours / theirs}


# 4. Memory


def measure_memory(store: SoftLabelStore, folder: Path, reads: int) -> dict[str, Any]:
    rows = [["images", "size of the store", "reader, before", "reader, after", "growth"]]
    measured = []
    for times in (20, 400):
        larger = enlarge(store, folder / f"times{times}", times)
        command = [sys.executable, __file__, "--measure_reader", str(larger.folder), "--reads", str(reads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory = json.loads(done.stdout.splitlines()[-1])
        before, after = memory["before"], memory["after"]
        size = larger.metadata.num_bytes
        rows.append(
            [
                f"{len(larger):,}",
                f"{size / 1e6:,.0f} MB",
                f"{before / 1e6:.1f} MB",
                f"{after / 1e6:.1f} MB",
                f"{(after - before) / 1e6:.1f} MB",
            ]
        )
        measured.append({"images": len(larger), "store_bytes": size, **memory})
    print(f"\n{format_table(rows)}", flush=True)
    return {"reads": reads, "rows": measured}


def enlarge(store: SoftLabelStore, folder: Path, times: int) -> SoftLabelStore:
    """A store whose shards are those of another, over and over, as links: large, and quickly made."""
    (folder / "data").mkdir(parents=True)
    shards = []
    for number in range(times * len(store.metadata.shards)):
        shard = store.metadata.shards[number % len(store.metadata.shards)]
        file = f"data/labels-{number:05d}.arrow"
        os.link(store.folder / shard.file, folder / file)
        shards.append(Shard(file, shard.images, shard.bytes, file_checksum(folder / file)))
    replace(store.metadata, num_images=times * len(store), shards=tuple(shards)).write(folder)
    return SoftLabelStore(folder)


def reader_memory(folder: Path, reads: int) -> dict[str, int]:
    """In a process of its own: resident memory after a few reads, and after many."""
    store = SoftLabelStore(folder)
    random = np.random.default_rng(0)

    def read(count: int) -> int:
        for index in random.integers(0, len(store), count).tolist():
            store[index]
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])

    return {"before": read(10), "after": read(reads)}


if __name__ == "__main__":
    main()
