"""The teacher of a labelling: from 8-bit crops to probabilities."""

from __future__ import annotations

import copy
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..training.preprocessing import measure_normalization
from ..training.teacher import saved_processor, timm_processor
from .crops import INTERPOLATIONS, normalize_pixels

_LAYOUT = torch.channels_last
DTYPES = ("float32", "bfloat16", "float16")


class LabelingTeacher:
    """A model that answers crops with probabilities, and what a store says of it.

    Args:
        teacher: an image-classification model of transformers, which is copied, or the Hub id or folder of one.
        processor: its image processor; if not given, the one saved beside it, or the one that a timm model carries
            in its configuration. Size, normalisation and interpolation are taken from it; its own crop is not made.
        device: to run on.
        dtype: "float32", "bfloat16" or "float16".

    Attributes:
        name, revision: Hub id or name of the folder; commit on the Hub, or None.
        fingerprint: hash of the weights.
        image_size: (height, width) of its input.
        interpolation: filter of its processor.
        label_names: names of its classes, in order.

    Raises:
        ValueError: the model cannot be loaded, has no processor, or does not say the size of its input.
    """

    def __init__(
        self,
        teacher: PreTrainedModel | str | os.PathLike,
        processor: Any,
        device: torch.device,
        dtype: str = "float32",
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; accepted: {', '.join(DTYPES)}.")
        if isinstance(teacher, str | os.PathLike):
            location = os.fspath(teacher)
            try:
                teacher = AutoModelForImageClassification.from_pretrained(location)
            except OSError as error:
                raise ValueError(f"The teacher {location!r} cannot be loaded: {error}") from error
            processor = saved_processor(location, teacher.config) if processor is None else processor
        else:
            teacher = copy.deepcopy(teacher)  # the caller keeps the model as it is
            processor = timm_processor(teacher.config) if processor is None else processor
        if processor is None:
            raise ValueError("the teacher has no image processor: pass teacher_processor=.")
        config = teacher.config
        path = config.name_or_path or type(teacher).__name__
        # Where a model lies on this machine is nobody else's business.
        self.name = Path(path).resolve().name if Path(path).exists() else path
        self.revision: str | None = getattr(config, "_commit_hash", None)
        self.fingerprint = weights_fingerprint(teacher)
        self.label_names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        normalization = measure_normalization(processor)
        size = normalization.size or getattr(config, "image_size", None)
        if size is None:
            raise ValueError(
                f"the size of the input of teacher {self.name!r} is not known: neither does its image processor make "
                "images of one size nor has its configuration an image_size. Pass a teacher_processor that does."
            )
        height, width = (size, size) if isinstance(size, int) else size
        self.image_size = (int(height), int(width))
        self.interpolation = _interpolation(processor)
        self._device = device
        self._dtype = getattr(torch, dtype)
        # Channels last: convolutions of CNN teachers run up to three times as fast; transformers do not mind.
        self._model: nn.Module = teacher.to(device=device, dtype=self._dtype, memory_format=_LAYOUT).eval()
        self._source = torch.tensor(normalization.source, device=device)
        self._scale = torch.tensor(normalization.scale, dtype=torch.float32, device=device)
        self._offset = torch.tensor(normalization.offset, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Label crops.

        Args:
            pixels: uint8 (batch, 3, height, width), in the size of `image_size`.

        Returns:
            The softmax of the logits, float32 (batch, classes), on the device.

        Raises:
            ValueError: the model answers with another number of classes than its configuration names.
        """
        inputs = normalize_pixels(pixels.to(self._device), self._source, self._scale, self._offset)
        logits = self._model(pixel_values=inputs.to(self._dtype, memory_format=_LAYOUT)).logits.float()
        if logits.shape != (len(pixels), len(self.label_names)):
            raise ValueError(
                f"teacher {self.name!r} answers {len(pixels)} crops with logits of shape {tuple(logits.shape)}, "
                f"expected {(len(pixels), len(self.label_names))} (config.num_labels)."
            )
        return logits.softmax(-1)


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash, 32 hexadecimal digits, of the parameters and buffers of a model and their names."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _interpolation(processor: Any) -> str:
    resample = getattr(processor, "resample", None)
    if resample is None:
        # timm's processor has it in the description of its data
        name = getattr(processor, "data_config", {}).get("interpolation", "bilinear")
        return name if name in INTERPOLATIONS else "bilinear"
    return {int(code): name for name, code in INTERPOLATIONS.items()}[int(resample)]
