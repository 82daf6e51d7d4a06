"""The distillation loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student's predictions against the teacher's, mean over the batch.

    -T^2 sum_c p_c log q_c with p = softmax(teacher / T) and q = softmax(student / T) (Hinton et al., 2015; with T = 1
    the loss of variation-aware quantization). The gradient is T (q - p) / batch: without the factor T^2 it would
    vanish at high temperatures. The teacher's logits are constants.

    Args:
        student_logits: (batch, classes); any floating-point type, reduced in float32.
        teacher_logits: (batch, classes), in the order of the student's classes.
        temperature: T, positive.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: if the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher logits have shape {tuple(teacher_logits.shape)}, expected the student's"
            f" {tuple(student_logits.shape)}."
        )
    if student_logits.dtype.itemsize < 4:
        student_logits = student_logits.float()
    probabilities = (teacher_logits.detach().to(student_logits.dtype) / temperature).softmax(-1)
    return F.cross_entropy(student_logits / temperature, probabilities) * temperature**2
