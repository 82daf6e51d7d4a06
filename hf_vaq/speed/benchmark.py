"""`benchmark_model`: what a model costs beside its float twin - time, memory and size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..config import QuantConfig
from ..export import ExportReport
from ..job.models import load_model, saved_size
from ..machine import choose_device
from ..packing import pack
from .foreign_load import ForeignLoad
from .memory import MemoryUse, measure_memory
from .models import float_twin, pixel_values
from .results import BenchmarkResult, Cost, Speed
from .runtimes import EXPORTS, Call, choose_backends, compiled, eager_call, export, exported_call
from .timing import time_interleaved

logger = logging.get_logger(__name__)

FLOAT = "float32"
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkSettings:
    """How `benchmark_model` measures.

    Attributes:
        batch_sizes: images of one call; each is a table of its own.
        runs: undisturbed rounds of each.
        threads: of every runtime (None: PyTorch's own choice).
        device: where PyTorch computes (None: an accelerator where there is one, otherwise the CPU).
        backends: names in `hf_vaq.speed.BACKENDS`; None takes all that are installed.
        memory: whether peaks of memory are measured, each model in a process of its own.

    Raises:
        ValueError: a batch size, `runs` or `threads` below 1, or no batch size.
    """

    batch_sizes: Sequence[int] = (1, 8)
    runs: int = 20
    threads: int | None = None
    device: str | None = None
    backends: Sequence[str] | None = None
    memory: bool = True

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise ValueError("batch_sizes is empty; accepted: one or more numbers, 1 and above.")
        counts = [("batch_sizes", size) for size in self.batch_sizes] + [("runs", self.runs)]
        if self.threads is not None:
            counts.append(("threads", self.threads))
        for name, value in counts:
            if value < 1:
                raise ValueError(f"{name} holds {value!r}; accepted: 1 and above.")


def benchmark_model(
    model: str | Path,
    float_model: str | Path | None = None,
    settings: BenchmarkSettings | None = None,
    *,
    say: Say = lambda message: None,
    progress: bool = False,
    load: ForeignLoad | None = None,
) -> BenchmarkResult:
    """Measure latency, throughput, peak memory and size of a model beside a float32 one, in one interleaved run.

    Args:
        model: folder or Hub id; float, quantized in training form, or packed.
        float_model: folder or Hub id of the float model (None: the twin of `model`, see `float_twin`).
        settings: how to measure (None: the defaults).
        say: is told what is being done, one line at a time.
        progress: show progress bars on stderr.
        load: what watches other processes (None: the system's own counters).

    Raises:
        ValueError: there is no such model, `float_model` is quantized, the two take different images, or a backend
            was asked for that is not possible here.
    """
    settings = settings or BenchmarkSettings()
    device = choose_device(settings.device)
    backends, left_out = choose_backends(settings.backends, device)
    threads_before = torch.get_num_threads()
    threads = settings.threads or threads_before
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _Benchmark(model, float_model, settings, device, threads, Path(folder), say).run(
                backends, left_out, progress, load
            )
    finally:
        torch.set_num_threads(threads_before)


class _Benchmark:
    """The two models of a benchmark, and the steps in their order."""

    def __init__(
        self,
        model: str | Path,
        float_model: str | Path | None,
        settings: BenchmarkSettings,
        device: torch.device,
        threads: int,
        folder: Path,
        say: Say,
    ):
        self.settings, self.device, self.threads, self.folder, self.say = settings, device, threads, folder, say
        say(f"loading {model}")
        self.name, self.model = str(model), load_model(model)
        self.form = _form(self.model)
        self.float_name, self.float = self._load_float(float_model)

    def _load_float(self, name: str | Path | None) -> tuple[str, PreTrainedModel]:
        if name is None:
            twin = self.model if self.form == "float" and self.model.dtype == torch.float32 else float_twin(self.model)
            return f"{type(self.model).__name__} in float32", twin
        self.say(f"loading {name}")
        model = load_model(name)
        if _form(model) != "float":
            raise ValueError(f"the float model {str(name)!r} is quantized ({_form(model)}).")
        for field in ("image_size", "num_channels"):
            if getattr(model.config, field) != getattr(self.model.config, field):
                raise ValueError(
                    f"the float model {str(name)!r} has {field} {getattr(model.config, field)}, the model itself has "
                    f"{getattr(self.model.config, field)}: they do not do the same work."
                )
        return str(name), model.float()

    def run(
        self, backends: list[str], left_out: dict[str, str], progress: bool, load: ForeignLoad | None
    ) -> BenchmarkResult:
        """Measure memory first, while this process holds least; then time."""
        notes = [f"{name} was not measured: {reason}" for name, reason in left_out.items()]
        if self.form == "float":
            exports = [name for name in backends if name in EXPORTS]
            if self.settings.backends is not None and exports:
                raise ValueError(f"backends holds {exports[0]!r}, but the exports are of quantized models.")
            backends, notes = [name for name in backends if name not in EXPORTS], []
        costs = self._costs()
        exports = self._export([name for name in backends if name in EXPORTS], notes)
        costs |= {name: Cost(report.size_bytes, None) for name, report in exports.items()}
        self.model.to(self.device)
        self.float.to(self.device)
        speeds, rejected, foreign, quiet = {}, 0, [], True
        for batch_size in self.settings.batch_sizes:
            calls = self._calls(backends, exports, batch_size)
            self.say(f"timing {len(calls)} ways at batch size {batch_size}")
            times = time_interleaved(
                calls, runs=self.settings.runs, threads=self.threads, load=load, progress=progress
            )
            speeds[batch_size] = {
                name: Speed(times.latency(name), times.speed_up(name), batch_size / times.latency(name).median)
                for name in calls
            }
            rejected += times.rejected_rounds
            foreign.append(times.foreign_cores)
            quiet &= times.quiet
        return BenchmarkResult(
            model=self.name,
            form=self.form,
            execution=getattr(self.model, "execution", None) or f"floating point ({_dtype(self.model)}, {self.form})",
            float_model=self.float_name,
            device=str(self.device),
            threads=self.threads,
            runs=self.settings.runs,
            speeds=speeds,
            costs=costs,
            rejected_rounds=rejected,
            foreign_cores=None if None in foreign else max(foreign),
            quiet=quiet,
            notes=notes,
        )

    def _costs(self) -> dict[str, Cost]:
        models = {FLOAT: self.float}
        if self.model is not self.float:
            models["model"] = self.model
        costs = {}
        for name, model in models.items():
            costs[name] = Cost(saved_size(model), self._memory(name, model) if self.settings.memory else None)
        return costs

    def _memory(self, name: str, model: PreTrainedModel) -> MemoryUse | None:
        self.say(f"measuring the memory of the {name if name == FLOAT else self.form} model in a process of its own")
        folder = self.folder / name
        model.save_pretrained(folder)
        return measure_memory(folder, self.settings.batch_sizes, threads=self.threads, device=str(self.device))

    def _export(self, names: list[str], notes: list[str]) -> dict[str, ExportReport]:
        if not names:
            return {}
        packed = self.model
        if self.form != "packed":
            notes.append("the exports are of the packed model: a training form is packed first")
            packed = pack(self.model)
        exports = {}
        for name in names:
            self.say(f"exporting to {name}")
            try:
                exports[name] = export(packed, name, self.folder / name)
            except ValueError as error:
                if self.settings.backends is not None:
                    raise
                notes.append(f"{name} was not measured: {error}")
        return exports

    def _calls(self, backends: list[str], exports: dict[str, ExportReport], batch_size: int) -> dict[str, Call]:
        # A second batch size in one process would be compiled for any, which is slower than for one.
        torch.compiler.reset()
        pixels = pixel_values(self.model, batch_size)
        calls = {FLOAT: eager_call(self.float, pixels)}
        if self.model is not self.float and "eager" in backends:
            calls["eager"] = eager_call(self.model, pixels)
        if "compiled" in backends:
            self.say(f"compiling for batch size {batch_size}")
            calls[f"{FLOAT}, compiled"] = _compiled_call(self.float, pixels)
            if self.model is not self.float:
                calls["compiled"] = _compiled_call(self.model, pixels)
        for name, report in exports.items():
            calls[name] = exported_call(report, pixels.cpu(), self.threads)
        return calls


def _compiled_call(model: PreTrainedModel, pixels: torch.Tensor) -> Call:
    call = eager_call(compiled(model), pixels)
    call()
    return call


def _form(model: PreTrainedModel) -> str:
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return "float"
    if not isinstance(config, QuantConfig):
        raise ValueError(f"{type(model).__name__} is quantized by another library ({type(config).__name__}).")
    return "packed" if config.packed else "training form"


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
