"""Image classification data: loading and checking, label matching, augmentation, and a torch dataset."""

from .dataset import ImageClassificationDataset, ImageDecodeError, decode_image
from .digits import load_digits
from .labelled_split import LabelledSplit
from .labels import LabelLookup, dataset_label_names, model_labels
from .loading import held_out_split, is_on_the_hub, load_dataset, prepare_columns, select_split
from .pictures import as_rgb
from .side_by_side import ImageStream, SideBySideImages
from .transforms import (
    Augmentation,
    InputFormat,
    check_input_format,
    evaluation_transform,
    input_format,
    training_transform,
)

__all__ = [
    "Augmentation",
    "ImageClassificationDataset",
    "ImageDecodeError",
    "ImageStream",
    "InputFormat",
    "LabelLookup",
    "LabelledSplit",
    "SideBySideImages",
    "as_rgb",
    "check_input_format",
    "dataset_label_names",
    "decode_image",
    "evaluation_transform",
    "held_out_split",
    "input_format",
    "is_on_the_hub",
    "load_dataset",
    "load_digits",
    "model_labels",
    "prepare_columns",
    "select_split",
    "training_transform",
]
