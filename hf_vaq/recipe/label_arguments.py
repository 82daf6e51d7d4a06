"""The fields of a recipe about stored soft labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..soft_labels.crops import CropSampling
from ..soft_labels.teacher import DTYPES


@dataclass
class LabelArguments:
    """Stored soft labels: `hf-vaq label` makes them; `hf-vaq train` learns from them without running the teacher."""

    soft_labels: str | None = field(
        default=None,
        metadata={
            "help": "Store of soft labels: a folder, which hf-vaq label writes, or (to train) a Hub id. None: the "
            "teacher is run during training."
        },
    )
    label_crops: int = field(default=500, metadata={"help": "Crops of each image that are labelled."})
    label_top_k: int | None = field(
        default=5, metadata={"help": "Most probable classes that are stored of each crop; none for all classes."}
    )
    label_crop_scale: float = field(
        default=0.08, metadata={"help": "Smallest share of the area that a labelled crop keeps."}
    )
    label_horizontal_flip: float = field(
        default=0.5, metadata={"help": "Probability that a labelled crop is mirrored."}
    )
    label_seed: int = field(
        default=0, metadata={"help": "Seed of the labelled crops. It is apart from seed, so that runs share a store."}
    )
    label_batch_size: int = field(default=64, metadata={"help": "Crops in a forward pass of the teacher."})
    label_dtype: str = field(
        default="float32", metadata={"help": f"Type in which the teacher labels: {', '.join(DTYPES)}."}
    )
    label_images_per_shard: int | None = field(
        default=None, metadata={"help": "Images of a file of the store; none for about half a million crops."}
    )
    label_streaming: bool = field(
        default=False, metadata={"help": "Label the dataset as a stream, without keeping it on this machine."}
    )
    label_hub_id: str | None = field(
        default=None, metadata={"help": "Data set on the Hub to which hf-vaq label uploads the finished store."}
    )

    def __post_init__(self):
        for name in ("label_crops", "label_top_k", "label_batch_size", "label_images_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value!r}; accepted: 1 or more.")
        if self.label_dtype not in DTYPES:
            raise ValueError(f"label_dtype is {self.label_dtype!r}; accepted: {', '.join(DTYPES)}.")
        if not 0 < self.label_crop_scale <= 1:
            raise ValueError(f"label_crop_scale is {self.label_crop_scale!r}; accepted: above 0, to 1.")
        if not 0 <= self.label_horizontal_flip <= 1:
            raise ValueError(f"label_horizontal_flip is {self.label_horizontal_flip!r}; accepted: 0 to 1.")
        if not 0 <= self.label_seed < 2**64:
            raise ValueError(f"label_seed is {self.label_seed!r}; accepted: 0 to 2^64 - 1.")

    def sampling(self) -> CropSampling:
        """Return how crops are drawn."""
        return CropSampling(
            scale=(self.label_crop_scale, 1.0), horizontal_flip=self.label_horizontal_flip, seed=self.label_seed
        )
