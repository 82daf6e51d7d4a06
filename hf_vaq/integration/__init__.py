"""Where quantization meets transformers: injection into stock models, loading and saving."""

from .in_memory import quantize
from .quantizer import VaqQuantizer

__all__ = ["VaqQuantizer", "quantize"]
