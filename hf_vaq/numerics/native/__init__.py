"""Compiled kernels for what training does with quantizers and quantized weights, on CPUs of any kind."""

from .loading import can_run
from .weights import LatentWeight, bin_regularizer, count_oscillations

__all__ = ["LatentWeight", "bin_regularizer", "can_run", "count_oscillations"]
