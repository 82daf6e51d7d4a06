"""Whether an exported model answers as the packed model does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..inference import set_execution

Runtime = Callable[[np.ndarray], np.ndarray]
"""From pixel values, float32 (batch, channels, height, width), to logits, (batch, labels)."""

ROUNDING = 2.0**-20
"""Relative size of the disturbance that stands for the rounding of another runtime: that of a float32 sum of a few
hundred products in another order (measured behind the first LayerNorms of DeiT-T: 4e-7 on average, 5e-6 at most)."""
TOLERANCE = 0.02
"""Difference of the logits that is accepted in any case, as a share of their standard deviation."""


class ExportDisagreementError(ValueError):
    """An exported model computes something else than the packed one."""


@dataclass(frozen=True)
class Agreement:
    """How an exported model's answers compare with those of the packed model's float simulation.

    Attributes:
        images: number of images compared.
        same_top1: how many of them have the same best class.
        max_logit_difference: largest difference of a logit.
        median_logit_difference: median over the images of the largest difference of a logit.
        own_median_logit_difference: the same of the packed model with itself, when every LayerNorm output is
            disturbed by 2^-20 of its value. Another order of floating-point operations moves a value across a rounding
            threshold now and then, a whole step of the quantizer; this says what that makes of the logits.
        logit_deviation: standard deviation of the packed model's logits, for comparison.
    """

    images: int
    same_top1: int
    max_logit_difference: float
    median_logit_difference: float
    own_median_logit_difference: float
    logit_deviation: float

    def check(self, what: str) -> None:
        """Refuse an export that differs by more than rounding explains.

        Raises:
            ExportDisagreementError: the median difference is above 2 % of the deviation of the logits, and above
                three times what rounding makes.
        """
        accepted = max(TOLERANCE * self.logit_deviation, 3 * self.own_median_logit_difference)
        if not self.median_logit_difference <= accepted:  # NaN too
            raise ExportDisagreementError(
                f"{what} computes something else than the packed model: the median difference of the logits over"
                f" {self.images} images is {self.median_logit_difference:.3g}, accepted: up to {accepted:.3g}"
                f" ({self.same_top1} of {self.images} have the same top-1). Nothing is written."
            )


@torch.inference_mode()
def compare(model: PreTrainedModel, runtime: Runtime, batches: Iterable[Tensor]) -> Agreement:
    """Run packed model and exported model on the same images.

    Args:
        model: packed; its float simulation on the CPU is the reference.
        runtime: the exported model.
        batches: pixel values, float32 (batch, channels, height, width); at least one image.

    Raises:
        ValueError: there is no image.
    """
    reference = set_execution(copy.deepcopy(model), "simulation")
    disturbed = copy.deepcopy(reference)
    _disturb(disturbed)
    expected, found, own = [], [], []
    for pixel_values in batches:
        expected.append(reference(pixel_values=pixel_values).logits.numpy())
        own.append(disturbed(pixel_values=pixel_values).logits.numpy())
        found.append(np.asarray(runtime(pixel_values.numpy())))
    if not expected:
        raise ValueError("there is no image to compare the exported model on.")
    logits = np.concatenate(expected)
    by_image = np.abs(np.concatenate(found) - logits).max(1)
    return Agreement(
        images=len(logits),
        same_top1=int((np.concatenate(found).argmax(1) == logits.argmax(1)).sum()),
        max_logit_difference=float(by_image.max()),
        median_logit_difference=float(np.median(by_image)),
        own_median_logit_difference=float(np.median(np.abs(np.concatenate(own) - logits).max(1))),
        logit_deviation=float(logits.std()),
    )


def sample_images(shape: tuple[int, int, int], count: int = 8, seed: int = 0) -> list[Tensor]:
    """Seeded normal noise in place of images, two at a time and one alone: several sizes of a batch.

    Args:
        shape: channels, height and width.
        count: number of images.
        seed: of the noise.
    """
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return [noise[:1], *noise[1:].split(2)]


def _disturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)

    def disturb(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output * (1 + ROUNDING * torch.randn(output.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(disturb)
