"""Analyses of a model and of its training: sensitivity to quantization, variation, oscillation.

The figures and the solver need the extra `analysis`: pip install 'hf-vaq[analysis]'.
"""

from .bit_allocation import BitSuggestion, Budget, allocate_bits, suggest_bits
from .groups import KINDS
from .moments import Moments, Spread
from .oscillation import OscillationResult, analyze_oscillation
from .sensitivity import SensitivityResult, SensitivityRow, analyze_sensitivity
from .short_training import TrainingBudget
from .switching import Part, Switchboard
from .variation import VariationResult, VariationRow, analyze_variation

__all__ = [
    "KINDS",
    "BitSuggestion",
    "Budget",
    "Moments",
    "OscillationResult",
    "Part",
    "SensitivityResult",
    "SensitivityRow",
    "Spread",
    "Switchboard",
    "TrainingBudget",
    "VariationResult",
    "VariationRow",
    "allocate_bits",
    "analyze_oscillation",
    "analyze_sensitivity",
    "analyze_variation",
    "suggest_bits",
]
