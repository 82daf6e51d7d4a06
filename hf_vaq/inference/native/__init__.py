"""Compiled kernels for CPUs with AVX-512 VNNI."""

from .loading import kernels

__all__ = ["kernels"]
