"""Peak memory of loading and of running a model, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..job.models import load_config, load_model

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a model needs, beyond the runtime.

    Attributes:
        runtime: memory of the process before the model is loaded: Python, PyTorch, transformers, and the code that a
            tiny model needs for loading and running. On an accelerator 0: only tensors count there.
        loading: peak while the model is loaded.
        loaded: what is still held when it has been loaded.
        running: by batch size, the peak while it runs (the weights included).
    """

    runtime: int
    loading: int
    loaded: int
    running: dict[int, int]


def measure_memory(
    model: str | Path,
    batch_sizes: Sequence[int] = (1, 8),
    *,
    threads: int | None = None,
    device: str = "cpu",
    timeout: float = 600,
) -> MemoryUse | None:
    """Load and run a model in a fresh process and return the peaks; None where the system does not tell them.

    A process of its own, because memory that another model has freed would be used again unnoticed. On the CPU the
    peaks are those of the resident set (Linux), on an accelerator those of the tensors.

    Args:
        model: folder or Hub id.
        batch_sizes: images of one forward pass, each measured after the one before.
        threads: of PyTorch (None: its own choice).
        device: where it runs.
        timeout: seconds after which the process is ended.

    Raises:
        ValueError: there is no such model; the process failed, with its last line, or took too long.
    """
    load_config(model)
    if device.startswith("cpu") and not _CLEAR_REFS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "memory.json"
        task = {"model": str(model), "batch_sizes": list(batch_sizes), "threads": threads, "device": device}
        command = [sys.executable, "-m", "hf_vaq.speed.memory", json.dumps(task), str(result)]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"Measuring the memory of {str(model)!r} took more than {timeout:.0f} seconds."
            ) from error
        if process.returncode != 0 or not result.exists():
            last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ValueError(f"The memory of {str(model)!r} could not be measured: {last}")
        measured = json.loads(result.read_text())
    measured["running"] = {int(size): value for size, value in measured["running"].items()}
    return MemoryUse(**measured)


class PeakMemory:
    """Peak of the resident set of this process (Linux), in bytes, from `reset` on."""

    def reset(self) -> int:
        """Give freed memory back to the system, start a new peak, and return what is in use now."""
        gc.collect()
        if sys.platform == "linux":
            _trim()
        # proc(5): 5 resets the peak of the resident set.
        _CLEAR_REFS.write_text("5")
        return self._read("VmRSS")

    def peak(self) -> int:
        """Return the largest resident set since `reset`."""
        return self._read("VmHWM")

    def now(self) -> int:
        """Return the resident set now, without memory that is free already."""
        gc.collect()
        _trim()
        return self._read("VmRSS")

    @staticmethod
    def _read(field: str) -> int:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
        return 1024 * int(line.split()[1])


class PeakTensorMemory:
    """Peak of the tensors on an accelerator, in bytes, from `reset` on."""

    def __init__(self, device: str):
        import torch

        self._device = torch.device(device)

    def reset(self) -> int:
        """Start a new peak."""
        import torch

        torch.accelerator.synchronize(self._device)
        torch.accelerator.reset_peak_memory_stats(self._device)
        return 0

    def peak(self) -> int:
        """Return the most that was allocated since `reset`."""
        import torch

        torch.accelerator.synchronize(self._device)
        return torch.accelerator.max_memory_allocated(self._device)

    def now(self) -> int:
        """Return what is allocated now."""
        import torch

        return torch.accelerator.memory_allocated(self._device)


def _measure(model: str, batch_sizes: Sequence[int], threads: int | None, device: str) -> MemoryUse:
    """Do the work of `measure_memory` in this process."""
    import torch

    import hf_vaq  # noqa: F401  (teaches transformers the packed format)

    from .models import pixel_values

    if threads is not None:
        torch.set_num_threads(threads)
    _use_runtime(model, device)
    memory = PeakMemory() if device.startswith("cpu") else PeakTensorMemory(device)
    runtime = memory.reset()
    loaded_model = load_model(model).to(device)
    loading, loaded = memory.peak() - runtime, memory.now() - runtime
    running = {}
    for batch_size in batch_sizes:
        memory.reset()
        with torch.inference_mode():
            for _ in range(2):
                loaded_model(pixel_values=pixel_values(loaded_model, batch_size))
        running[batch_size] = memory.peak() - runtime
    return MemoryUse(runtime, max(0, loading), max(0, loaded), running)


def _use_runtime(model: str, device: str) -> None:
    """Bring everything into memory that any model needs: lazily imported code, thread pools, kernels.

    A tiny ViT is saved, loaded and run, in full precision and packed, and the class of `model` is imported. It has one
    layer only, and `PeakMemory.reset` returns what it leaves: the objects of a deep model would leave holes in pages
    that something else holds, which no allocator can return, and a small model would fit into them unnoticed.
    """
    import torch
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    from .. import QuantConfig, calibrate, pack, quantize

    config = load_config(model)
    mapping = AutoModelForImageClassification._model_mapping
    if type(config) in mapping:
        mapping[type(config)]
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    float_model, quantized = (
        ViTForImageClassification(ViTConfig(**shape, image_size=32, num_labels=2)).eval() for _ in range(2)
    )
    pixels = torch.randn(1, 3, 32, 32)
    quantize(quantized, QuantConfig(weight_bits=2, activation_bits=2))
    calibrate(quantized, [pixels])
    for each in (float_model, pack(quantized)):
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            each.save_pretrained(folder)
            load_model(folder).to(device)(pixel_values=pixels.to(device))


def _trim() -> None:
    # glibc keeps freed memory; the next model would use it unnoticed. Other C libraries lack the function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _main(task: str, result: str) -> None:
    arguments = json.loads(task)
    measured = _measure(**arguments)
    partial = Path(f"{result}.partial")
    partial.write_text(json.dumps(asdict(measured)))
    os.replace(partial, result)


if __name__ == "__main__":
    _main(*sys.argv[1:])
