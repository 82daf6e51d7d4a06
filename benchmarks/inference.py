"""Latency, throughput, memory and size of packed models, beside every other way to run the same model on a CPU.

DeiT-Tiny and Swin-Tiny at 224 pixels with random weights, which is enough for speed. Compared with
(`benchmarks/peers`): float32 eager and compiled, bfloat16 compiled, PyTorch's dynamic int8, PT2E static int8 and
torchao's dynamic int8; ONNX Runtime in float32 and static int8; OpenVINO in float32, bfloat16 and int8 (NNCF). All
contestants of one model and batch size share one process and one interleaved run; a ratio is the median of the ratios
paired by round, against float32 eager. Rounds that other processes disturbed are thrown away. What cannot run is
listed with the reason.

    pip install -e ".[onnx,openvino]" torchao nncf
    python benchmarks/inference.py                                        # everything
    python benchmarks/inference.py --models deit_tiny --batch_sizes 1     # one part; the others stay in the results
    python benchmarks/inference.py --parts memory profile
    python benchmarks/inference.py --prepare                              # quantize, export, compile; time nothing

The script starts itself again with a fixed mmap threshold of glibc's allocator: float32 eager at batch 8 otherwise has
two levels, by whether the allocator gave its memory back to the system before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from environment import settle_environment

PACKAGES = ("torchao", "onnx", "onnxruntime", "openvino", "nncf")
REFERENCE = "float32 eager"
MODELS = ("deit_tiny", "swin_tiny")
PARTS = ("timing", "memory", "profile")
NAME = "inference"


def main() -> None:
    arguments = parse()
    if not arguments.list:
        settle_environment(arguments.threads)
    import torch
    from peers import OURS, PEERS, Task
    from transformers.utils import logging

    builders = {**PEERS, **OURS}
    builders = {name: builders[name] for name in (REFERENCE, *OURS, *PEERS)}
    if arguments.list:
        print("\n".join(builders))
        return
    unknown = [wanted for wanted in arguments.only if not any(wanted in name for name in builders)]
    if unknown:
        sys.exit(f"--only {' '.join(map(repr, unknown))}: no contestant of that name; see --list.")
    parts = combinations(arguments)
    if len(parts) > 1:
        run_apart(parts)
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        builders = {
            name: builder
            for name, builder in builders.items()
            if name == REFERENCE or any(wanted in name for wanted in arguments.only)
        }
    (name,), (part,) = arguments.models, arguments.parts
    folder = arguments.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(shape(name), arguments.batch_sizes[0], arguments.threads, folder)
    if part == "timing":
        time_contestants(name, task, builders, arguments)
    elif not arguments.prepare:
        (profile if part == "profile" else measure_memory)(name, task, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=20, help="undisturbed rounds of every timing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="contestants whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="print the names of the contestants")
    parser.add_argument("--folder", type=Path, default=Path("outputs/inference"), help="packed and exported models")
    parser.add_argument("--prepare", action="store_true", help="fill the folder and the caches; time nothing")
    parser.add_argument("--quick", action="store_true", help="three rounds, results beside the real ones (*_quick)")
    return parser.parse_args()


def combinations(arguments: argparse.Namespace) -> list[list[str]]:
    """The arguments of each single measurement: one part of one model, at one batch size where they are separate."""
    found = []
    for name in arguments.models:
        for part in arguments.parts:
            if part == "memory":
                found.append(["--models", name, "--parts", part])
            else:
                sizes = map(str, arguments.batch_sizes)
                found += [["--models", name, "--parts", part, "--batch_sizes", size] for size in sizes]
    return found


def run_apart(parts: list[list[str]]) -> None:
    """Run each measurement in a process of its own.

    Compiled code is shared between models of one class within a process, with shapes that become dynamic from the
    second batch size on, and is given up after eight variants.
    """
    # argparse takes the last of several values
    failed = [part for part in parts if subprocess.run([sys.executable, *sys.argv, *part]).returncode != 0]
    if failed:
        sys.exit(f"{len(failed)} of {len(parts)} measurements failed: {'; '.join(' '.join(part) for part in failed)}")


def shape(name: str):
    """A float32 model of that shape with random weights."""
    import torch
    from transformers import DeiTConfig, DeiTForImageClassification, SwinConfig, SwinForImageClassification

    torch.manual_seed(0)
    if name == "swin_tiny":
        return SwinForImageClassification(SwinConfig(num_labels=1000)).eval()
    config = DeiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
    return DeiTForImageClassification(config).eval()


def time_contestants(name: str, task, builders: dict, arguments: argparse.Namespace) -> None:
    """Build all contestants, then time them in one interleaved run."""
    from hf_vaq.speed import time_interleaved

    contestants, absent = {}, {}
    for contestant, builder in builders.items():
        started = time.perf_counter()
        try:
            built = builder(task)
            built.run()
        except Exception as error:  # a peer that does not run here is a finding, and no reason to measure nothing
            message = re.sub(r"\x1b\[\d+m", "", f"{type(error).__name__}: {error}")
            reason = " ".join(message.split())[:300]
            absent[contestant] = reason
            print(f"{name} {task.batch_size}: {contestant} cannot run: {reason}", flush=True)
            continue
        contestants[contestant] = built
        print(f"{name} {task.batch_size}: built {contestant} in {time.perf_counter() - started:.1f} s", flush=True)
    if arguments.prepare:
        return
    started = time.perf_counter()
    times = time_interleaved(
        {contestant: built.run for contestant, built in contestants.items()},
        reference=REFERENCE,
        runs=3 if arguments.quick else arguments.runs,
        repeats=1,
        threads=task.threads,
        progress=True,
    )
    rows = {}
    for contestant, built in contestants.items():
        latency, ratio = times.latency(contestant), times.speed_up(contestant)
        rows[contestant] = {
            "milliseconds": [round(1000 * value, 3) for value in (latency.low, latency.median, latency.high)],
            "ratio": [round(value, 3) for value in (ratio.low, ratio.median, ratio.high)],
            "images_per_second": round(task.batch_size / latency.median, 1),
            "size_bytes": built.size_bytes,
            "execution": built.execution,
        }
    measured = {
        "reference": REFERENCE,
        "order": "lower quartile, median, upper quartile",
        "rounds": times.rounds,
        "rejected_rounds": times.rejected_rounds,
        "foreign_cores": times.foreign_cores,
        "quiet": times.quiet,
        "seconds": round(time.perf_counter() - started, 1),
        "contestants": rows,
        "cannot_run": absent,
    }
    write_part(arguments, [name, "timing", str(task.batch_size)], measured)
    print_times(name, task.batch_size, measured)


def measure_memory(name: str, task, arguments: argparse.Namespace) -> None:
    """Size on disk and peak memory of the float model and of the packed ones, each in a process of its own."""
    from dataclasses import asdict

    from peers.ours import BITS, packed_folder

    from hf_vaq.job.output import weights_size
    from hf_vaq.speed import measure_memory as measure

    float_folder = task.folder / "float32"
    if not float_folder.exists():
        task.model.save_pretrained(float_folder)
    folders = {"float32": float_folder} | {f"W{bits}A{bits}": packed_folder(task, bits) for bits in BITS}
    measured = {}
    for form, folder in folders.items():
        size = weights_size(folder)
        use = measure(folder, arguments.batch_sizes, threads=task.threads)
        measured[form] = {
            "size_bytes": size,
            "float_size_over_own": round(weights_size(float_folder) / size, 3),
            "memory": None if use is None else asdict(use),
            "loading_over_size": None if use is None else round(use.loading / size, 3),
        }
        print(f"{name} {form}: {measured[form]}", flush=True)
    write_part(arguments, [name, "memory"], {"forms": measured})


def profile(name: str, task, arguments: argparse.Namespace) -> None:
    """Where the time of the integer engine goes, and how fast it would be if parts of it cost nothing."""
    from inference_profile import profile_engine

    measured = profile_engine(task)
    write_part(arguments, [name, "profile", str(task.batch_size)], measured)
    print(json.dumps(measured, indent=1), flush=True)


def write_part(arguments: argparse.Namespace, keys: list[str], measured: dict) -> None:
    """Put one part into the results file; the other parts in it stay as they are."""
    from reporting import RESULTS, write_results

    name = NAME + ("_quick" if arguments.quick else "")
    path = RESULTS / f"{name}.json"
    whole = json.loads(path.read_text())["measured"] if path.exists() else {}
    whole["environment"] = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"), "packages": peer_versions()}
    part = whole.setdefault("models", {})
    for key in keys[:-1]:
        part = part.setdefault(key, {})
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    part[keys[-1]] = {"command": command, "date": time.strftime("%Y-%m-%d"), **measured}
    write_results(name, whole)


def peer_versions() -> dict[str, str | None]:
    """Versions of the peers' packages; None where one is not installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def print_times(name: str, batch_size: int, measured: dict) -> None:
    from hf_vaq.tables import format_table

    table = [[f"{name}, batch {batch_size}", "ms", "quartiles", "x float32 eager", "quartiles", "images/s", "MB"]]
    for contestant, row in sorted(measured["contestants"].items(), key=lambda item: -item[1]["ratio"][1]):
        low, median, high = row["milliseconds"]
        ratio_low, ratio, ratio_high = row["ratio"]
        size = "" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f}"
        table.append(
            [
                contestant,
                f"{median:.1f}",
                f"{low:.1f}-{high:.1f}",
                f"{ratio:.2f}",
                f"{ratio_low:.2f}-{ratio_high:.2f}",
                f"{row['images_per_second']:.1f}",
                size,
            ]
        )
    print(format_table(table))
    print(
        f"{measured['rounds']} rounds in {measured['seconds']} s, {measured['rejected_rounds']} thrown away, quiet: "
        f"{measured['quiet']}, others used {measured['foreign_cores']} cores",
        flush=True,
    )


if __name__ == "__main__":
    main()
