"""Compiled kernels for what training does once a step with all quantized weights, on CPUs of any kind."""

from .ops import LatentWeight, bin_regularizer, can_run, count_oscillations

__all__ = ["LatentWeight", "bin_regularizer", "can_run", "count_oscillations"]
