"""Speed, memory and size of models, measured side by side."""

from .benchmark import BenchmarkSettings, benchmark_model
from .foreign_load import CpuUse, ForeignLoad, read_cpu_use
from .memory import MemoryUse, measure_memory
from .models import float_twin, pixel_values
from .results import BenchmarkResult, Cost, Speed
from .runtimes import BACKENDS
from .timing import InterleavedTimes, Spread, time_interleaved

__all__ = [
    "BACKENDS",
    "BenchmarkResult",
    "BenchmarkSettings",
    "Cost",
    "CpuUse",
    "ForeignLoad",
    "InterleavedTimes",
    "MemoryUse",
    "Speed",
    "Spread",
    "benchmark_model",
    "float_twin",
    "measure_memory",
    "pixel_values",
    "read_cpu_use",
    "time_interleaved",
]
