"""What the benchmark scripts share: the machine they ran on, their results file, the data that is not shipped."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("hf-vaq", "torch", "torchvision", "transformers", "accelerate", "datasets")


def machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def write_results(name: str, measured: Any) -> Path:
    """Write `results/<name>.json`: what was measured, where, and the command that repeats it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    content = {"command": command, "machine": machine(), "measured": measured}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def data_folder(*parts: str) -> list[str]:
    """Paths of parts of the data that is not shipped, see docs/benchmarks.md; ends the script where one is absent."""
    root = os.environ.get("HF_VAQ_DATA")
    if root is None:
        sys.exit("HF_VAQ_DATA is not set: it names a folder of data that is not shipped, see docs/benchmarks.md.")
    paths = [Path(root) / part for part in parts]
    for path in paths:
        if not path.exists():
            sys.exit(f"HF_VAQ_DATA={root} has no {path.name}, see docs/benchmarks.md.")
    return [str(path) for path in paths]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
