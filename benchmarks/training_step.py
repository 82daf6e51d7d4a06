"""A training step with quantizers against one without: time and peak memory, and the same of other libraries.

One training step is forward, backward and AdamW on a fixed random batch; DeiT-T at 224 px, batch 16, and Swin-T at
batch 4. All candidates of a model run in one process, interleaved, and are compared with the float32 step in eager
mode, round by round. "regularized" adds the bin regularizer and the oscillation tracker, as every step of the second
half of a training run has them.

Peak memory is measured in a process of its own for each candidate: parameters and optimizer states, counted, plus the
growth of the resident memory from just before a step (after unused memory was given back to the system) to the highest
point in it, which holds activations and gradients. Compiler and libraries are not in it.

Peers are run if they can be imported, and named if not: torchao (int8 activations, int4 weights, Linears only) and
brevitas (learned scales, Linears only; attention is not quantized by either).

    python benchmarks/training_step.py                      # all; see docs/training_speed.md for how long it takes
    python benchmarks/training_step.py --models swin-t      # one model; the other one stays in the results
    python benchmarks/training_step.py --quick      # DeiT-T, few candidates, three rounds; writes nothing
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from reporting import RESULTS, write_results
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
)

from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.numerics.compiled import uncompiled
from hf_vaq.numerics.fake_quantize import fake_quantize
from hf_vaq.numerics.fused import Quantization, fused_gradients, fused_quantize
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.speed.timing import InterleavedTimes, time_interleaved
from hf_vaq.tables import format_table
from hf_vaq.training.oscillation import OscillationTracker
from hf_vaq.training.regularization import model_bin_regularizer

BATCH_SIZE = {"deit-t": 16, "swin-t": 4}
REFERENCE = "float32"
QUANTIZER_SHAPES = ((16, 198, 192), (16, 198, 768), (16, 3, 198, 198), (768, 192))


@dataclass(frozen=True)
class Candidate:
    """One way to train.

    Attributes:
        bits: of weights and activations; None for full precision.
        peer: library that quantizes, instead of ours.
        fused: whether our quantizers are fused.
        compiled: whether `torch.compile` gets the whole model.
        autocast: whether the forward pass runs under bfloat16 autocast.
        regularized: with bin regularizer and oscillation tracker.
        no_compiler: as where there is none.
    """

    bits: int | None = None
    peer: str | None = None
    fused: bool = True
    compiled: bool = False
    autocast: bool = False
    regularized: bool = False
    no_compiler: bool = False


def candidates() -> dict[str, Candidate]:
    """All of them by name."""
    found = {
        REFERENCE: Candidate(),
        "float32, compiled": Candidate(compiled=True),
        "float32, bf16 autocast": Candidate(autocast=True),
        "float32, compiled, bf16 autocast": Candidate(compiled=True, autocast=True),
    }
    for bits in (4, 2):
        for regularized in (False, True):
            name = f"W{bits}A{bits}" + (", regularized" if regularized else "")
            found[name] = Candidate(bits, regularized=regularized)
            found[f"{name}, compiled"] = Candidate(bits, compiled=True, regularized=regularized)
            found[f"{name}, bf16 autocast"] = Candidate(bits, autocast=True, regularized=regularized)
            found[f"{name}, compiled, bf16 autocast"] = Candidate(
                bits, compiled=True, autocast=True, regularized=regularized
            )
    found["W4A4, not fused"] = Candidate(4, fused=False)
    found["W4A4, no compiler"] = Candidate(4, no_compiler=True)
    for peer in PEERS:
        found[peer] = Candidate(peer=peer)
    return found


QUICK = (REFERENCE, "W4A4", "W4A4, regularized", "W4A4, regularized, compiled, bf16 autocast", "W4A4, not fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCH_SIZE, default=list(BATCH_SIZE))
    parser.add_argument("--candidates", nargs="+", help="names; all that can run if not given")
    parser.add_argument("--rounds", type=int, default=9, help="undisturbed rounds to keep")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="DeiT-T, few candidates, three rounds; writes nothing")
    parser.add_argument("--no_memory", action="store_true", help="skip the measurement of memory")
    parser.add_argument("--measure_memory", nargs=2, metavar=("MODEL", "CANDIDATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    if arguments.measure_memory:
        model, name = arguments.measure_memory
        print(json.dumps(step_memory(model, candidates()[name])))
        return
    if arguments.quick:
        arguments.models, arguments.rounds = ["deit-t"], 3
        arguments.candidates = arguments.candidates or list(QUICK)
    names = arguments.candidates or list(candidates())
    unknown = sorted(set(names) - set(candidates()))
    if unknown:
        sys.exit(f"unknown candidates {unknown}; known: {list(candidates())}")
    absent = sorted(peer for peer in PEERS if importlib.util.find_spec(peer) is None and peer in names)
    if absent:
        print(f"not measured, because they are not installed here: {', '.join(absent)}", flush=True)
    names = [REFERENCE, *(name for name in names if name != REFERENCE and name not in absent)]
    quantizers = measure_quantizers()
    for model in arguments.models:
        rows = measure_model(model, names, arguments)
        if not arguments.quick:
            measured = {**earlier(), "not_installed": absent, "quantizers": quantizers, model: rows}
            print(f"written to {write_results('training_step', measured)}")


def earlier() -> dict[str, Any]:
    """What is in the results already."""
    path = RESULTS / "training_step.json"
    return json.loads(path.read_text())["measured"] if path.is_file() else {}


# One step


def build(name: str) -> PreTrainedModel:
    """The float32 model with random weights."""
    torch.manual_seed(0)
    if name == "deit-t":
        config = DeiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
        return DeiTForImageClassification(config)
    return SwinForImageClassification(SwinConfig(num_labels=1000, drop_path_rate=0.0))


def make_step(name: str, candidate: Candidate) -> tuple[Callable[[], float], int]:
    """A function that does one training step, and the bytes of parameters and optimizer states."""
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(BATCH_SIZE[name], 3, 224, 224, generator=generator)
    labels = torch.randint(0, 1000, (BATCH_SIZE[name],), generator=generator)
    model = build(name)
    if candidate.peer is not None:
        model = PEERS[candidate.peer](model)
    elif candidate.bits is not None:
        quantize(model, QuantConfig(weight_bits=candidate.bits, activation_bits=candidate.bits))
        calibrate(model, [pixel_values[:4]])
        set_fusion(model, candidate.fused)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    forward = torch.compile(model) if candidate.compiled else model
    tracker = OscillationTracker()
    if candidate.regularized:
        tracker.start(model)

    def step() -> float:
        with uncompiled() if candidate.no_compiler else nullcontext():
            return trained()

    def trained() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=candidate.autocast):
            loss = forward(pixel_values=pixel_values, labels=labels).loss
        if candidate.regularized:
            loss = loss + 0.01 * model_bin_regularizer(model)
        loss.backward()
        optimizer.step()
        if candidate.regularized:
            tracker.update(model)
        return loss.item()

    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    state = 6 if candidate.regularized else 0  # bytes a weight: the tracker's
    weights = sum(parameter.numel() for parameter in model.parameters())
    return step, 3 * parameters + state * weights


# Peers


def torchao(model: PreTrainedModel) -> nn.Module:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    activations = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weights = IntxFakeQuantizeConfig(torch.int4, group_size=32)
    quantize_(model, QATConfig(activation_config=activations, weight_config=weights, step="prepare"))
    return model


def brevitas(model: PreTrainedModel) -> nn.Module:
    from brevitas.core.scaling import ScalingImplType
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat

    class Weights(Int8WeightPerTensorFloat):
        bit_width = 4
        scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS

    class Activations(Int8ActPerTensorFloat):
        bit_width = 4

    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            quantized = QuantLinear(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                weight_quant=Weights,
                input_quant=Activations,
            )
            with torch.no_grad():
                quantized.weight.copy_(layer.weight)
            model.set_submodule(name, quantized)
    return model


PEERS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {"torchao": torchao, "brevitas": brevitas}


# Time and memory


def measure_model(model: str, names: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    print(f"\n{model}, batch {BATCH_SIZE[model]}: preparing {len(names)} candidates", flush=True)
    steps = {}
    for name in names:
        steps[name], _ = make_step(model, candidates()[name])
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
    gc.collect()
    memory = {}
    if not arguments.no_memory:
        for name in names:
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--measure_memory", model, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            memory[name] = json.loads(done.stdout.splitlines()[-1])
    return report(names, times, memory)


def report(names: list[str], times: InterleavedTimes, memory: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    rows = [["", "time, x float32", "quartiles", "ms", "memory, x float32", "MB"]]
    measured = []
    for name in names:
        ratios = times.speed_up(name)
        low, ratio, high = 1 / ratios.high, 1 / ratios.median, 1 / ratios.low
        row: dict[str, Any] = {"candidate": name, "time_ratio": ratio, "time_ratio_quartiles": [low, high]}
        row["milliseconds"] = 1000 * times.latency(name).median
        cells = [name, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{row['milliseconds']:.0f}", "", ""]
        if memory:
            peak = memory[name]["persistent"] + memory[name]["growth"]
            row["memory_ratio"] = peak / (memory[REFERENCE]["persistent"] + memory[REFERENCE]["growth"])
            row["memory_bytes"] = memory[name]
            cells[4:] = [f"{row['memory_ratio']:.3f}", f"{peak / 1e6:.0f}"]
        rows.append(cells)
        measured.append(row)
    print(format_table(rows))
    print(
        f"{times.rounds} rounds; {times.rejected_rounds} thrown away because other processes ran"
        + ("" if times.quiet else "; the machine was never quiet: these figures say little"),
        flush=True,
    )
    return measured


def step_memory(model: str, candidate: Candidate) -> dict[str, int]:
    """Bytes of parameters and optimizer states, and growth of the resident memory within a step."""
    step, persistent = make_step(model, candidate)
    for _ in range(2):
        step()
    growth = []
    for _ in range(3):
        growth.append(_growth(step))
    return {"persistent": persistent, "growth": sorted(growth)[1]}


def _growth(step: Callable[[], float]) -> int:
    _optimizer_of(step).zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest value
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _optimizer_of(step: Any) -> torch.optim.Optimizer:
    def contents(function: Any) -> dict[str, Any]:
        names = function.__code__.co_freevars
        return {name: cell.cell_contents for name, cell in zip(names, function.__closure__, strict=True)}

    return contents(contents(step)["trained"])["optimizer"]


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(match[1])


# One quantizer


def measure_quantizers() -> list[dict[str, Any]]:
    """Forward and backward of one 4-bit quantizer with one scale, in several forms."""
    rows = [["one quantizer, forward and backward, ms", "fused", "not fused", "PyTorch's own operator", "copy"]]
    measured = []
    for shape in QUANTIZER_SHAPES:
        forms = quantizer_forms(torch.randn(shape), torch.randn(shape))
        times = time_interleaved(forms, runs=20, warm_up=3, repeats=3, threads=torch.get_num_threads())
        found = {name: 1000 * times.latency(name).median for name in forms}
        rows.append([" x ".join(map(str, shape)), *(f"{value:.3f}" for value in found.values())])
        measured.append({"shape": shape, "milliseconds": found})
    print(format_table(rows), flush=True)
    return measured


def quantizer_forms(x: Tensor, grad: Tensor) -> dict[str, Callable[[], Any]]:
    scale = torch.full((1,), 0.4)
    quantization = Quantization(4, ScaleGroups(), factor="numel")
    leaf, learned = x.clone().requires_grad_(), scale.clone().requires_grad_()
    zero_point = torch.zeros(1, requires_grad=True)

    def fused() -> None:
        fused_quantize(x, scale, None, quantization)
        fused_gradients(grad, x, scale, None, quantization)

    def not_fused() -> None:
        torch.autograd.grad(fake_quantize(leaf, learned.reshape(()), 4), [leaf, learned], grad)

    def builtin() -> None:
        result = torch._fake_quantize_learnable_per_tensor_affine(leaf, learned, zero_point, -8, 7, 1.0)
        torch.autograd.grad(result, [leaf, learned], grad)

    return {"fused": fused, "not fused": not_fused, "PyTorch's own operator": builtin, "copy": x.clone}


if __name__ == "__main__":
    main()
