"""A training step with quantizers against one without: time and peak memory, and the same of other libraries.

One training step is forward, backward and AdamW on a fixed random batch; DeiT-T at 224 px, batch 16, and Swin-T at
batch 4. Candidates run interleaved with the float32 step in eager mode, and are compared with it round by round: a
few in one process (a "sitting"), because with all of them a round takes so long that the machine changes its speed
meanwhile. "regularized" adds the bin regularizer and the oscillation tracker, as every step of the second half of a
training run has them. The candidates are in `training_candidates.py`.

Peak memory is measured in a process of its own for each of `training_memory.MEMORY`, in two ways: the bytes of the
tensors that exist at a time, whatever allocates them, and the resident memory. Compiler and libraries are not in it.

Peers are run if they can be imported, and named if not: torchao (int8 activations, int4 weights, Linears only) and
brevitas (learned scales, Linears only; attention is not quantized by either).

    python benchmarks/training_step.py                      # everything, in several sittings
    python benchmarks/training_step.py --models swin-t --candidates "W4A4" "W4A4, regularized"
                                                            # one sitting; all else stays in the results as it is
    python benchmarks/training_step.py --quick              # DeiT-T, few candidates, three rounds; writes nothing

Results are kept by kind of processor, `results/training_step_<kind>.json`; `training_report.py` makes tables of them.
The script starts itself again with a fixed mmap threshold of glibc's allocator, see `environment.py`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch
import transformers
from environment import settle_environment
from reporting import RESULTS, write_results
from training_candidates import BATCH_SIZE, PEERS, REFERENCE, TrainingStep, candidates, forget_models, results_name
from training_memory import MEMORY, StepMemory, step_memory
from training_parts import measure_quantizers, measure_weight_passes

from hf_vaq.speed.timing import InterleavedTimes, time_interleaved
from hf_vaq.tables import format_table

COMPILED_VARIANTS = 64
"""More than there are compiled candidates: they share the code of one class, of which Dynamo would compile eight
variants and run the others uncompiled."""
FEWER = {
    "swin-t": [
        *(REFERENCE, "float32, compiled", "float32, bf16 autocast", "float32, compiled, bf16 autocast"),
        *("W4A4", "W4A4, compiled", "W4A4, compiled, bf16 autocast"),
        *("W4A4, regularized", "W4A4, regularized, compiled"),
        *("W4A4, regularized, bf16 autocast", "W4A4, regularized, compiled, bf16 autocast"),
        *("W2A2, regularized", "W2A2, regularized, compiled"),
        *("W2A2, regularized, bf16 autocast", "W2A2, regularized, compiled, bf16 autocast"),
        *PEERS,
    ]
}
"""Models of which not all candidates are measured: compiling one takes three minutes."""
QUICK = (REFERENCE, "W4A4", "W4A4, regularized", "W4A4, regularized, compiled, bf16 autocast", "W4A4, not fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCH_SIZE, default=list(BATCH_SIZE))
    parser.add_argument("--candidates", nargs="+", help="names of a single sitting; all sittings if not given")
    parser.add_argument("--rounds", type=int, default=7, help="undisturbed rounds to keep")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="DeiT-T, few candidates, three rounds; writes nothing")
    parser.add_argument("--no_memory", action="store_true", help="skip the measurement of memory; what is known stays")
    parser.add_argument("--measure_memory", nargs=2, metavar=("MODEL", "CANDIDATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.measure_memory:
        settle_environment(arguments.threads)
    torch.set_num_threads(arguments.threads)
    torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
    transformers.utils.logging.set_verbosity_error()
    if arguments.measure_memory:
        model, name = arguments.measure_memory
        print(json.dumps(asdict(step_memory(TrainingStep(model, candidates()[name])))))
        return
    if arguments.quick:
        arguments.models, arguments.rounds = ["deit-t"], 3
        arguments.candidates = arguments.candidates or list(QUICK)
    absent = sorted(peer for peer in PEERS if importlib.util.find_spec(peer) is None)
    if absent:
        print(f"not measured, because they are not installed here: {', '.join(absent)}", flush=True)
    unknown = sorted(set(arguments.candidates or []) - set(candidates()))
    if unknown:
        sys.exit(f"unknown candidates {unknown}; known: {list(candidates())}")
    if arguments.candidates is None:
        keep({"not_installed": absent, "quantizers": measure_quantizers(), "weight_passes": measure_weight_passes()})
        for model in arguments.models:
            for names in sittings(list(candidates()) if model not in FEWER else FEWER[model]):
                subprocess.run([sys.executable, *sys.argv, "--models", model, "--candidates", *names], check=True)
        keep({})  # with the command of the whole
        return
    names = [REFERENCE, *(name for name in arguments.candidates if name != REFERENCE and name not in absent)]
    for model in arguments.models:
        rows = measure_model(model, names, arguments)
        if not arguments.quick:
            kept = {row["candidate"]: row for row in earlier().get(model, [])}
            for row in rows:  # without memory, if it is not measured, that of an earlier sitting stays
                kept[row["candidate"]] = {**kept.get(row["candidate"], {}), **row}
            keep({model: list(kept.values())})


def earlier() -> dict[str, Any]:
    """What is in the results already."""
    path = RESULTS / f"{results_name()}.json"
    return json.loads(path.read_text())["measured"] if path.is_file() else {}


def keep(measured: dict[str, Any]) -> None:
    """Put that into the results; the rest stays."""
    print(f"written to {write_results(results_name(), {**earlier(), **measured})}", flush=True)


def sittings(names: list[str]) -> list[list[str]]:
    """The candidates that are measured together: those of one mode, and others."""
    together: dict[tuple[bool, ...], list[str]] = {}
    for name in names:
        candidate = candidates()[name]
        other = candidate.peer is not None or candidate.no_compiler or not candidate.fused
        together.setdefault((other, candidate.compiled, candidate.autocast), []).append(name)
    return list(together.values())


# Time and memory


def measure_model(model: str, names: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    print(f"\n{model}, batch {BATCH_SIZE[model]}: preparing {len(names)} candidates", flush=True)
    steps = {}
    for name in names:
        steps[name] = TrainingStep(model, candidates()[name])
        for _ in range(2):  # compiles
            steps[name]()
        print(f"  {name}", flush=True)
    times = time_interleaved(
        steps,
        reference=REFERENCE,
        runs=arguments.rounds,
        warm_up=1,
        repeats=1,
        threads=arguments.threads,
        progress=True,
    )
    steps.clear()
    forget_models()
    gc.collect()
    memory = {}
    if not arguments.no_memory:
        # With the allocator as it is: memory that is freed goes back to the system.
        environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        for name in [name for name in names if name in MEMORY]:
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--measure_memory", model, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            memory[name] = StepMemory(**json.loads(done.stdout.splitlines()[-1]))
    return report(names, times, memory)


def report(names: list[str], times: InterleavedTimes, memory: dict[str, StepMemory]) -> list[dict[str, Any]]:
    rows = [["", "time, x float32", "quartiles", "ms", "tensors, x float32", "MB", "resident, x float32", "MB"]]
    measured = []
    for name in names:
        ratios = times.speed_up(name)
        low, ratio, high = 1 / ratios.high, 1 / ratios.median, 1 / ratios.low
        row: dict[str, Any] = {"candidate": name, "time_ratio": ratio, "time_ratio_quartiles": [low, high]}
        row["milliseconds"] = 1000 * times.latency(name).median
        cells = [name, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{row['milliseconds']:.0f}"]
        if name in memory:
            found, reference = memory[name], memory[REFERENCE]
            row["tensors_ratio"] = found.tensors / reference.tensors
            row["memory_ratio"] = found.resident / reference.resident
            row["memory_bytes"] = asdict(found)
            cells += [f"{row['tensors_ratio']:.3f}", f"{found.tensors / 1e6:.0f}"]
            cells += [f"{row['memory_ratio']:.3f}", f"{found.resident / 1e6:.0f}"]
        cells += [""] * (len(rows[0]) - len(cells))
        rows.append(cells)
        measured.append(row)
    print(format_table(rows))
    print(
        f"{times.rounds} rounds; {times.rejected_rounds} thrown away because other processes ran"
        + ("" if times.quiet else "; the machine was never quiet: these figures say little"),
        flush=True,
    )
    return measured


if __name__ == "__main__":
    main()
