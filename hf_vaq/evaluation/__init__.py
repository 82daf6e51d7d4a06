"""Accuracy with its uncertainty, speed and size of image-classification models, one or several side by side."""

from .intervals import Interval, bootstrap_interval
from .measuring import EvaluationResult, evaluate_model, evaluate_side_by_side
from .metrics import TOP_K, TopKAccuracy, compute_metrics, preprocess_logits_for_metrics, ranked_classes
from .report import BootstrapSettings, EvaluatedModel, EvaluationReport
from .results import eval_results

__all__ = [
    "TOP_K",
    "BootstrapSettings",
    "EvaluatedModel",
    "EvaluationReport",
    "EvaluationResult",
    "Interval",
    "TopKAccuracy",
    "bootstrap_interval",
    "compute_metrics",
    "eval_results",
    "evaluate_model",
    "evaluate_side_by_side",
    "preprocess_logits_for_metrics",
    "ranked_classes",
]
