"""Compiled kernels for what training does with quantized weights, on CPUs of any kind."""

from .ops import LatentWeight, bin_regularizer, can_run, count_oscillations, weight_gradients

__all__ = ["LatentWeight", "bin_regularizer", "can_run", "count_oscillations", "weight_gradients"]
