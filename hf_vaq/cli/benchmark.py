"""`hf-vaq benchmark MODEL`: latency, throughput, memory and size, beside the float model."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

HELP = "Measure latency, throughput, peak memory and size of a model beside the float model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="local folder or Hub id of a float, trained or packed model")
    parser.add_argument(
        "--float",
        dest="float_model",
        metavar="MODEL",
        help="float model to compare with (default: the same architecture in float32)",
    )
    parser.add_argument(
        "--batch_sizes", "--batch-sizes", nargs="+", type=int, default=[1, 8], help="images a call (default: 1 8)"
    )
    parser.add_argument("--runs", type=int, default=20, help="undisturbed rounds of each timing (default: 20)")
    parser.add_argument("--threads", type=int, help="threads of every runtime (default: as many as PyTorch takes)")
    parser.add_argument("--device", help="such as cpu or cuda (default: an accelerator where there is one)")
    parser.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help="eager, compiled, onnx, openvino (default: all that are installed)",
    )
    parser.add_argument(
        "--no_memory", "--no-memory", action="store_true", help="do not start processes that measure memory"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write the result to")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print tables."""
    from ..job.output import write_json
    from ..machine import machine
    from ..speed import BenchmarkSettings, benchmark_model

    if arguments.output is not None and arguments.output.is_dir():
        raise ValueError(f"output is {str(arguments.output)!r}, which is a folder; accepted: a file to write.")
    settings = BenchmarkSettings(
        batch_sizes=arguments.batch_sizes,
        runs=arguments.runs,
        threads=arguments.threads,
        device=arguments.device,
        backends=arguments.backends,
        memory=not arguments.no_memory,
    )
    result = benchmark_model(
        arguments.model,
        arguments.float_model,
        settings,
        say=lambda message: print(message, file=sys.stderr, flush=True),
        progress=True,
    )
    print(result.tables())
    if arguments.output is not None:
        command = shlex.join(["hf-vaq", *arguments.words])
        write_json(arguments.output, {"command": command, "machine": machine(), **result.to_dict()})
    return 0
