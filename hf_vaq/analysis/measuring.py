"""Measure many settings of a model's quantizers on the same images: top-1, loss, and noise in the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import BatchCache, digest
from .groups import block_names, locate
from .replay import BlockReplay
from .switching import Part, Switchboard


@dataclass(frozen=True)
class Measured:
    """Sums over images, from which the measures follow; sums of two batches add.

    Attributes:
        images: number of images.
        correct: how many of them were classified as labelled.
        loss: sum of the cross-entropies with the labels, in nats.
        signal: sum of squares of the full-precision logits, less the mean of each image's (softmax ignores it).
        noise: sum of squares of the difference to them, likewise.
        seconds: time of the forward passes.
    """

    images: int = 0
    correct: int = 0
    loss: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Measured) -> Measured:
        return Measured(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct / self.images

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy with the labels, in nats."""
        return self.loss / self.images

    @property
    def noise_to_signal(self) -> float:
        """Power of the noise in the logits over that of the full-precision logits."""
        return self.noise / self.signal if self.signal else math.inf

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio of the logits in decibels, 10 log10(signal / noise); None where there is no noise."""
        return 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else None


def measure_logits(logits: Tensor, reference: Tensor, labels: Tensor, seconds: float = 0.0) -> Measured:
    """Compare the logits of one batch with those of full precision and with the labels.

    Args:
        logits: (images, classes).
        reference: logits of the full-precision model, likewise.
        labels: class indices, (images,).
        seconds: time that the forward pass took.

    Raises:
        ValueError: the logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise ValueError("the model returned logits that are not finite (NaN or infinity).")
    logits, reference = logits.double(), reference.double()
    centred = reference - reference.mean(1, keepdim=True)
    return Measured(
        images=len(labels),
        correct=int((logits.argmax(1) == labels).sum()),
        loss=F.cross_entropy(logits, labels, reduction="sum").item(),
        signal=centred.square().sum().item(),
        noise=(logits - logits.mean(1, keepdim=True) - centred).square().sum().item(),
        seconds=seconds,
    )


class SettingsMeasurement:
    """Measures settings of one quantized model, batch by batch, all settings of a batch before the next one.

    A setting that agrees with "nothing quantized" or with "everything quantized" up to some block is computed from
    that block on only, see `BlockReplay`.

    Args:
        model: quantized, in training form, calibrated; in evaluation mode on its device.
        board: its switchboard.
        settings: what to quantize, by the name of the setting.
        cache: keeps the results of finished batches; None measures everything anew.
        clock: returns seconds; it is read when the device has finished what was asked of it.
    """

    def __init__(
        self,
        model: nn.Module,
        board: Switchboard,
        settings: Mapping[str, frozenset[Part]],
        cache: BatchCache | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ):
        self.model, self.board, self.settings, self.cache, self.clock = model, board, settings, cache, clock
        blocks = block_names(model, board)
        self._replay = BlockReplay(model, blocks, embeddings=_embeddings(model))
        self._blocks = len(blocks)
        self._block_index = {name: index for index, name in enumerate(blocks)}
        self._position = {part.quantizer: self._position_of(part.quantizer) for part in board.parts}

    @torch.inference_mode()
    def run(
        self,
        batches: Iterable[Mapping[str, Tensor]],
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Measured]:
        """Measure every setting over all batches.

        Args:
            batches: mappings with "pixel_values", (images, channels, height, width), and "labels", (images,).
            advance: told how many measurements of a setting on a batch are done.
        """
        totals = dict.fromkeys(self.settings, Measured())
        for batch in batches:
            for name, measured in self._measure_batch(batch, advance).items():
                totals[name] += measured
        return totals

    def _measure_batch(self, batch: Mapping[str, Tensor], advance: Callable[[int], None]) -> dict[str, Measured]:
        key = digest(batch["pixel_values"], batch["labels"])
        known = self.cache.read(key) if self.cache is not None else {}
        found = {name: Measured(**known[name]) for name in self.settings if name in known}
        advance(len(found))
        missing = {name: parts for name, parts in self.settings.items() if name not in found}
        if missing:
            found |= self._compute(batch, missing, advance)
            if self.cache is not None:
                self.cache.write(key, known | {name: vars(measured) for name, measured in found.items()})
        return found

    def _compute(
        self, batch: Mapping[str, Tensor], missing: Mapping[str, frozenset[Part]], advance: Callable[[int], None]
    ) -> dict[str, Measured]:
        device = next(self.model.parameters()).device
        pixel_values, labels = batch["pixel_values"].to(device), batch["labels"].to(device)
        results: dict[str, Measured] = {}
        # One base at a time, so that the outputs of the blocks are kept once and not twice.
        nothing_first = sorted(missing, key=lambda name: len(self._nearer_base(missing[name])))
        bases: dict[frozenset[Part], tuple[Tensor, list, float]] = {}
        reference = self._base(bases, frozenset(), pixel_values)[0]
        for name in nothing_first:
            parts = missing[name]
            base = self._nearer_base(parts)
            logits, outputs, seconds = self._base(bases, base, pixel_values)
            if parts != base:
                first = min(self._position[part.quantizer] for part in parts ^ base)
                with self._replay.skipping(first, outputs):
                    logits, seconds = self._forward(parts, pixel_values)
            results[name] = measure_logits(logits, reference, labels, seconds)
            advance(1)
        return results

    def _nearer_base(self, parts: frozenset[Part]) -> frozenset[Part]:
        everything = self.board.parts
        return everything if 2 * len(parts) > len(everything) else frozenset()

    def _base(self, bases: dict, base: frozenset[Part], pixel_values: Tensor) -> tuple[Tensor, list, float]:
        if base not in bases:
            bases.clear()
            with self._replay.recording() as outputs:
                logits, seconds = self._forward(base, pixel_values)
            bases[base] = logits, outputs, seconds
        return bases[base]

    def _forward(self, parts: frozenset[Part], pixel_values: Tensor) -> tuple[Tensor, float]:
        with self.board.quantizing(parts, fixed_weights=True):
            started = self.clock()
            logits = self.model(pixel_values=pixel_values).logits
            return logits, self.clock() - started

    def _position_of(self, quantizer: str) -> int:
        """How many blocks run before the quantizer, for certain."""
        location = locate(self.model, quantizer)
        if location.block is not None:
            return self._block_index[location.block]
        return self._blocks if location.kinds == ("last_layer",) else 0


def _embeddings(model: nn.Module) -> str | None:
    name = f"{getattr(model, 'base_model_prefix', '')}.embeddings"
    return name if name in dict(model.named_modules()) else None


def measure_model(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], reference: Sequence[Tensor]) -> Measured:
    """Measure a model as it is.

    Args:
        model: in evaluation mode, on its device.
        batches: mappings with "pixel_values" and "labels".
        reference: logits of the full-precision model for every batch, (images, classes).
    """
    device = next(model.parameters()).device
    total = Measured()
    with torch.inference_mode():
        for batch, logits in zip(batches, reference, strict=True):
            answer = model(pixel_values=batch["pixel_values"].to(device)).logits
            total += measure_logits(answer, logits.to(device), batch["labels"].to(device))
    return total
