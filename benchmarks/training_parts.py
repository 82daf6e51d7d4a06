"""Parts of a training step by themselves, for `training_step.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from training_candidates import BATCH_SIZE, Candidate, TrainingStep, forget_models

from hf_vaq.numerics.compiled import uncompiled
from hf_vaq.numerics.fake_quantize import fake_quantize
from hf_vaq.numerics.fused import fused_gradients, fused_quantize
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.quantization import Quantization
from hf_vaq.speed.timing import time_interleaved
from hf_vaq.tables import format_table
from hf_vaq.training.regularization import add_regularizer_gradient

QUANTIZER_SHAPES = ((16, 198, 192), (16, 198, 768), (16, 3, 198, 198), (768, 192))


def measure_quantizers() -> list[dict[str, Any]]:
    """Forward and backward of one 4-bit quantizer with one scale, in several forms."""
    rows = [["one quantizer, forward and backward, ms", "fused", "not fused", "PyTorch's own operator", "copy"]]
    measured = []
    for shape in QUANTIZER_SHAPES:
        forms = quantizer_forms(torch.randn(shape), torch.randn(shape))
        times = time_interleaved(forms, runs=20, warm_up=3, repeats=3, threads=torch.get_num_threads())
        found = {name: 1000 * times.latency(name).median for name in forms}
        rows.append([" x ".join(map(str, shape)), *(f"{value:.3f}" for value in found.values())])
        measured.append({"shape": shape, "milliseconds": found})
    print(format_table(rows), flush=True)
    return measured


def quantizer_forms(x: Tensor, grad: Tensor) -> dict[str, Callable[[], Any]]:
    scale = torch.full((1,), 0.4)
    quantization = Quantization(4, ScaleGroups(), factor="numel")
    leaf, learned = x.clone().requires_grad_(), scale.clone().requires_grad_()
    zero_point = torch.zeros(1, requires_grad=True)

    def fused() -> None:
        fused_quantize(x, scale, None, quantization)
        fused_gradients(grad, x, scale, None, quantization)

    def not_fused() -> None:
        torch.autograd.grad(fake_quantize(leaf, learned.reshape(()), 4), [leaf, learned], grad)

    def builtin() -> None:
        result = torch._fake_quantize_learnable_per_tensor_affine(leaf, learned, zero_point, -8, 7, 1.0)
        torch.autograd.grad(result, [leaf, learned], grad)

    return {"fused": fused, "not fused": not_fused, "PyTorch's own operator": builtin, "copy": x.clone}


def measure_weight_passes() -> list[dict[str, Any]]:
    """Regularizer with gradient, and tracker, over all weights of a W4A4 model: native, and as without a compiler."""
    rows = [["all weights of a model, ms", "regularizer", "tracker", "no compiler: regularizer", "tracker"]]
    measured = []
    for model in BATCH_SIZE:
        forms = weight_passes(TrainingStep(model, Candidate(4, regularized=True)))
        times = time_interleaved(forms, runs=10, warm_up=2, repeats=3, threads=torch.get_num_threads())
        found = {name: 1000 * times.latency(name).median for name in forms}
        rows.append([model, *(f"{value:.1f}" for value in found.values())])
        measured.append({"model": model, "milliseconds": found})
        forget_models()
    print(format_table(rows), flush=True)
    return measured


def weight_passes(step: TrainingStep) -> dict[str, Callable[[], Any]]:
    step()  # there are gradients now

    def regularizer() -> None:
        add_regularizer_gradient(step.model, 0.01)

    def tracker() -> None:
        step.tracker.update(step.model)

    def without(form: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with uncompiled():
                form()

        return run

    return {
        "regularizer": regularizer,
        "tracker": tracker,
        "regularizer, no compiler": without(regularizer),
        "tracker, no compiler": without(tracker),
    }
