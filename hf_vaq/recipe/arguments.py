"""The fields of a recipe, by section; `VaqTrainingArguments` adds those of training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ..config import QuantConfig
from ..data.transforms import Augmentation
from ..strict_yaml import parse_yaml
from .convert import convert

SELF_TEACHER = "self"


@dataclass
class ModelArguments:
    """Which model is quantized, and who teaches it."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Full-precision model to start from: a Hub id or a local folder. Either this or model_config."
        },
    )
    model_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a new model, with its model_type; it is trained in full precision first. The "
            "number and names of its classes are those of the data set."
        },
    )
    teacher: str | None = field(
        default=SELF_TEACHER,
        metadata={
            "help": "Model to distil from: a Hub id or a local folder, 'self' for the full-precision start, or none "
            "for training on the labels."
        },
    )
    image_mean: list[float] = field(
        default_factory=lambda: [0.5, 0.5, 0.5],
        metadata={"help": "With model_config: mean per channel (values 0 to 1) that the image processor subtracts."},
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.5, 0.5, 0.5],
        metadata={"help": "With model_config: standard deviation per channel that the image processor divides by."},
    )

    def __post_init__(self):
        self.model_config = _mapping("model_config", self.model_config)
        if (self.model is None) == (self.model_config is None):
            raise ValueError(
                f"model is {self.model!r} and model_config is {self.model_config!r}; accepted: exactly one of them, "
                "for instance --model facebook/deit-tiny-patch16-224."
            )
        if self.model_config is not None and "model_type" not in self.model_config:
            raise ValueError(
                "model_config has no model_type; accepted: a type that transformers knows, such as 'vit'."
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {values!r}; accepted: three finite numbers, one a channel.")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std!r}; accepted: three numbers above 0, one a channel.")


@dataclass
class DataArguments:
    """Which images are used, and how the training images are varied."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "'digits' (bundled), a local folder or .parquet file, or the id of a data set on the Hub."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, where it has several."}
    )
    dataset_streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training images as a stream, and keep none of them; the held-out ones are kept. Needs "
            "max_steps and whole splits."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={"help": "With dataset_streaming: images to choose the next one from, all of one part of the data."},
    )
    train_split: str = field(
        default="train",
        metadata={"help": "Split to train and calibrate on; slices such as 'train[:500]' are accepted."},
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Held-out split to evaluate on; none takes validation, valid, val or test, the first there is."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    label_column: str = field(
        default="label",
        metadata={
            "help": "Column with the labels: classes or strings (matched by name), or integers (class indices)."
        },
    )
    crop_scale: float | None = field(
        default=0.25,
        metadata={"help": "Smallest share of the area that a random resized crop keeps; none for no crop."},
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a mirror image."})
    affine_degrees: float = field(default=0.0, metadata={"help": "Largest random rotation and shear, in degrees."})
    affine_translate: float = field(default=0.0, metadata={"help": "Largest random shift, as a share of the side."})
    affine_zoom: float = field(default=0.0, metadata={"help": "Largest random relative change of size."})
    rand_augment_magnitude: int = field(
        default=0, metadata={"help": "Magnitude of RandAugment (two operations an image), 1 to 30; 0 switches it off."}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Probability that a random rectangle is blanked."})

    def __post_init__(self):
        if not self.dataset:
            raise ValueError(
                "dataset is missing; accepted: 'digits', a local folder or .parquet file, or a Hub id, for instance "
                "--dataset uoft-cs/cifar10."
            )
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer}; accepted: 1 and above.")
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """Return the part that describes the variation of training images, checked."""
        return Augmentation(**{name.name: getattr(self, name.name) for name in dataclasses.fields(Augmentation)})


@dataclass
class FloatArguments:
    """The full-precision phase, which a recipe with `model_config` starts with; the rest is as in training."""

    float_num_train_epochs: float = field(
        default=0.0, metadata={"help": "With model_config: epochs of training in full precision."}
    )
    float_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate in full precision."})
    float_weight_decay: float = field(default=0.05, metadata={"help": "Weight decay in full precision."})
    float_warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up in full precision: steps, or below 1 a share of all steps."}
    )
    float_label_smoothing: float = field(default=0.0, metadata={"help": "Label smoothing in full precision."})

    def __post_init__(self):
        for name in ("float_num_train_epochs", "float_learning_rate", "float_weight_decay", "float_warmup_steps"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}; accepted: a finite number, 0 or more.")
        if not 0 <= self.float_label_smoothing < 1:
            raise ValueError(f"float_label_smoothing is {self.float_label_smoothing!r}; accepted: 0 to below 1.")


@dataclass
class QuantArguments:
    """What is quantized, how finely, to how many bits: the fields of `QuantConfig`."""

    weight_bits: int | None = field(
        default=4, metadata={"help": "Bits of the weights, 2 to 8; none leaves them in float."}
    )
    activation_bits: int | None = field(
        default=4, metadata={"help": "Bits of the activations, 2 to 8; none leaves them in float."}
    )
    edge_bits: int | None = field(
        default=8,
        metadata={"help": "Bits of the first and last layer and of Swin's patch merging; none leaves them in float."},
    )
    weight_granularity: str = field(
        default="tensor", metadata={"help": "What shares a weight scale: tensor, head or channel."}
    )
    activation_granularity: str = field(
        default="tensor", metadata={"help": "What shares an activation scale: tensor or head."}
    )
    scale_gradient: str = field(
        default="l1", metadata={"help": "Factor on the gradient of scales: l1 (module-dependent) or numel (LSQ)."}
    )
    weight_scale: str = field(
        default="learned", metadata={"help": "Weight scales: learned, or statistics of the weights."}
    )
    quantize_attention: bool = field(
        default=True, metadata={"help": "Quantize queries, keys, values and attention probabilities."}
    )
    modules_to_not_convert: list[str] | None = field(
        default=None, metadata={"help": "Modules to leave in floating point."}
    )
    module_overrides: dict | str | None = field(
        default=None, metadata={"help": "Bits or granularity by pattern of module names."}
    )

    def __post_init__(self):
        self.module_overrides = _mapping("module_overrides", self.module_overrides)
        self.config()

    def config(self) -> QuantConfig:
        """Return the `QuantConfig`, checked."""
        return QuantConfig(**{name.name: getattr(self, name.name) for name in dataclasses.fields(self)})


@dataclass
class OutputArguments:
    """What may be done to a folder that already holds something."""

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Remove what an earlier run wrote into output_dir. Otherwise a folder in use is refused."},
    )


def _mapping(name: str, value: Any) -> dict | None:
    """Read a mapping that may come as YAML text from the command line."""
    if isinstance(value, str):
        value = parse_yaml(value, name)
    return convert(name, value, dict | None)
