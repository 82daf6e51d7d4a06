"""Quantization-aware training: arguments, trainer, losses, regularizer, oscillation tracking."""

from .arguments import SCALE_LEARNING_RATE_FACTOR, VaqTrainingArguments
from .checkpoints import CheckpointError, last_complete_checkpoint
from .distillation import soft_cross_entropy
from .non_finite import NonFiniteError
from .oscillation import OSCILLATION_NAME, OscillationTracker
from .oscillation_record import RECORD_FOLDER, OscillationRecorder
from .preprocessing import ImageNormalization, PixelConversion, measure_normalization
from .regularization import cosine_ramp, model_bin_regularizer
from .teacher import Teacher, build_teacher, match_labels
from .trainer import VaqTrainer

__all__ = [
    "OSCILLATION_NAME",
    "RECORD_FOLDER",
    "SCALE_LEARNING_RATE_FACTOR",
    "CheckpointError",
    "ImageNormalization",
    "NonFiniteError",
    "OscillationRecorder",
    "OscillationTracker",
    "PixelConversion",
    "Teacher",
    "VaqTrainer",
    "VaqTrainingArguments",
    "build_teacher",
    "cosine_ramp",
    "last_complete_checkpoint",
    "match_labels",
    "measure_normalization",
    "model_bin_regularizer",
    "soft_cross_entropy",
]
