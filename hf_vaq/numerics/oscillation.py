"""Oscillation of weight codes: how often the integer code of a weight flips back.

Source: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training" (ICML 2022), section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 4096.0
"""What a frequency of 1 is in a history, before growth."""
LARGEST_GROWTH = 8.0
"""Up to which `UNIT` times growth is far from the largest float16 number."""
FLOAT16_FROM = 2.0**-10
"""Momentum from which a frequency in float16, which has 11 binary digits, can count single oscillations."""
DROPPED = 1 << 13
"""Float32 numbers that become the same float16 number when the rest of their digits is cut off."""
GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples, without their integer part, spread evenly between 0 and 1."""


class Oscillations:
    """Counts, code by code, the oscillations of training: f <- m o + (1 - m) f in every step.

    o is 1 where the code changed in this step and in the direction opposite to its last change, else 0. A code that
    jumps over several levels counts as one change. f is the frequency, an exponential moving average from 0 to 1.

    Few codes change in a step, and only those are touched: instead of shrinking all frequencies by (1 - m), the number
    that they are divided by in the end grows by 1 / (1 - m). What is kept of every code beside itself is one number,
    its history: the magnitude is the frequency times `UNIT` times the growth since it was last set back, the sign that
    of the last change, and NaN stands for a code that has not changed yet.

    A history is float16 if the momentum is at least `FLOAT16_FROM`, else float32. In float16 an oscillation of a
    weight that oscillates often is an addition of a few units in the last place, so that rounding to the nearest would
    err in one direction; instead the point where a step rounds up moves on from step to step, and errors cancel out.

    Args:
        codes: int8 codes before the first step, (weights,); kept, and brought up to date in every step.
        momentum: m, from 0 to 1.
    """

    def __init__(self, codes: Tensor, momentum: float = 0.001):
        self.codes = codes
        self.momentum = momentum
        dtype = torch.float16 if momentum >= FLOAT16_FROM else torch.float32
        self.history = torch.full_like(codes, math.nan, dtype=dtype)
        self.growth = 1.0
        self.steps = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.codes.nbytes + self.history.nbytes

    def begin_step(self) -> tuple[float, int]:
        """Let all frequencies shrink.

        Returns:
            What an oscillation of this step adds to the magnitude of a history, and what is then added to the float32
            number, in units of its last place, before it is cut to float16.
        """
        if self.momentum == 1:
            self.history.mul_(0.0)
        else:
            self.growth /= 1 - self.momentum
            if self.growth > LARGEST_GROWTH:
                back = 2.0 ** -math.ceil(math.log2(self.growth))  # exact, in the histories as well
                self.history.mul_(back)
                self.growth *= back
        self.steps += 1
        return self.momentum * UNIT * self.growth, int(DROPPED * (self.steps * GOLDEN_RATIO % 1))

    def update(self, codes: Tensor) -> None:
        """Account for one training step.

        Args:
            codes: int8 codes after it, in the shape of those before.
        """
        increment, rounding = self.begin_step()
        changed = (codes != self.codes).nonzero(as_tuple=True)
        now, history = codes[changed], self.history[changed].float()
        down = now < self.codes[changed]
        first = history.isnan()
        flipped = ~first & (history.signbit() != down)
        magnitude = torch.where(first, 0.0, history.abs()) + flipped * increment
        if self.history.dtype == torch.float16:
            magnitude = ((magnitude.view(torch.int32) + rounding) & -DROPPED).view(torch.float32)
        self.history[changed] = torch.where(down, -magnitude, magnitude).to(self.history.dtype)
        self.codes[changed] = now

    @property
    def frequency(self) -> Tensor:
        """f of every code, float32."""
        return self.history.float().abs().nan_to_num(0.0) / (UNIT * self.growth)

    @property
    def direction(self) -> Tensor:
        """Sign of the last change of every code, int8: -1, 1, or 0 as long as it has not changed."""
        return torch.where(self.history.isnan(), 0, 1 - 2 * self.history.signbit().to(torch.int8)).to(torch.int8)


def oscillation_percentage(frequency: Tensor, threshold: float = 0.005) -> Tensor:
    """Percentage (0 to 100) of the weights whose oscillation frequency is above `threshold`; a scalar."""
    return (frequency > threshold).to(torch.float32).mean() * 100
