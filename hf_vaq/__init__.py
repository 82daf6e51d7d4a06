"""Low-bit Vision Transformers for the Hugging Face ecosystem.

Importing this package registers the quantization method "vaq" with transformers.
"""

from .calibration import calibrate, is_calibrated
from .config import QuantConfig
from .integration import quantize
from .packing import pack
from .version import __version__

__all__ = ["QuantConfig", "__version__", "calibrate", "is_calibrated", "pack", "quantize"]
