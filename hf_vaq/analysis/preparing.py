"""What the measurements start from: a quantized, calibrated copy of a model, and batches of images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel

from ..calibration import calibrate
from ..config import QuantConfig
from ..integration import quantize
from ..nn import quantizer_parameter_names
from ..version import __version__
from .cache import digest

Batch = Mapping[str, Tensor]
_SCALES = "scales.safetensors"


def check_full_precision(model: PreTrainedModel) -> None:
    """Refuse a quantized model where a full-precision one is needed.

    Raises:
        ValueError: saying which form the model has.
    """
    config = getattr(model.config, "quantization_config", None)
    if config is not None:
        form = "packed" if getattr(config, "packed", False) else "quantized, in training form"
        raise ValueError(
            f"this {type(model).__name__} is {form}; accepted: the full-precision model, which the analysis quantizes"
            " itself (a run of `hf-vaq train` keeps the one it trained in its folder float/)."
        )


def batches_of(dataset: Dataset, batch_size: int) -> DataLoader:
    """Batches of a dataset, in its order.

    Raises:
        ValueError: `batch_size` below 1, or an empty dataset.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; accepted: 1 and above.")
    if len(dataset) == 0:
        raise ValueError("the dataset to analyze on is empty; accepted: at least one image.")
    return DataLoader(dataset, batch_size=batch_size)


def random_subset(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """`count` examples, chosen at random and kept in their order; the whole dataset if it has no more, or if None.

    Raises:
        ValueError: `count` below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"a number of images is {count!r}; accepted: 1 and above.")
    if count is None or count >= len(dataset):
        return dataset
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
    return Subset(dataset, chosen.sort().values.tolist())


class QuantizedCopies:
    """Quantizes copies of one full-precision model, and remembers their calibration in a folder.

    Args:
        model: full precision; it is not changed.
        calibration: batches with "pixel_values", training images.
        device: of the copies.
        cache: folder for scales and results; None keeps nothing.

    Raises:
        ValueError: the model is quantized already.
    """

    def __init__(
        self, model: PreTrainedModel, calibration: Sequence[Batch], device: torch.device, cache: Path | None = None
    ):
        check_full_precision(model)
        self._model = model
        self._calibration = calibration
        self._device = device
        self._cache = cache
        self._identity = [
            digest(model.state_dict()),
            digest({str(i): batch["pixel_values"] for i, batch in enumerate(calibration)}),
            __version__,
            torch.__version__,
            transformers.__version__,
        ]

    def full_precision(self) -> PreTrainedModel:
        """An unquantized copy in evaluation mode."""
        return copy.deepcopy(self._model).eval().to(self._device)

    def quantized(self, config: QuantConfig) -> tuple[PreTrainedModel, Path | None]:
        """A quantized, calibrated copy in evaluation mode, and the cache folder of everything that it gives rise to.

        Raises:
            ValueError: the model cannot be quantized so.
        """
        model = quantize(self.full_precision(), copy.deepcopy(config))
        if self._cache is None:
            calibrate(model, self._calibration)
            return model, None
        described = {name: value for name, value in config.to_dict().items() if name != "hf_vaq_version"}
        folder = self._cache / digest(self._identity, described)
        names = quantizer_parameter_names(model)
        if (folder / _SCALES).is_file():
            # Calibration may differ in the last bit from run to run on a GPU; results before and after must not.
            missing = model.load_state_dict(load_file(folder / _SCALES), strict=False).missing_keys
            if not names & set(missing):
                return model, folder
        calibrate(model, self._calibration)
        state = model.state_dict()
        kept = {name: state[name].contiguous() for name in state if name in names or name.endswith(".calibrated")}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder / f"{_SCALES}.partial")
        (folder / f"{_SCALES}.partial").replace(folder / _SCALES)
        return model, folder
