"""`hf-vaq benchmark MODEL`: latency, throughput, memory and size, beside the float model."""

from __future__ import annotations

import argparse
import sys

from .shared_arguments import add_output, check_output, write_output

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
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print tables."""
    from ..machine import machine
    from ..speed import BenchmarkSettings, benchmark_model

    check_output(arguments)
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
    write_output(arguments, {"machine": machine(), **result.to_dict()})
    return 0
