"""Low-bit Vision Transformers for the Hugging Face ecosystem.

Importing this package registers the quantization method "vaq" with transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .calibration import calibrate, is_calibrated
from .config import QuantConfig
from .integration import quantize
from .nn.fusion import set_fusion
from .packing import pack
from .version import __version__

if TYPE_CHECKING:
    from .training import VaqTrainer, VaqTrainingArguments

__all__ = [
    "QuantConfig",
    "VaqTrainer",
    "VaqTrainingArguments",
    "__version__",
    "calibrate",
    "is_calibrated",
    "pack",
    "quantize",
    "set_fusion",
]


def __getattr__(name: str) -> Any:
    # The Trainer brings datasets and much else along, which somebody who only loads a model does not need.
    if name in ("VaqTrainer", "VaqTrainingArguments"):
        from . import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
