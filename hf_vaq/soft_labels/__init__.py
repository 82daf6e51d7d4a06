"""Soft labels on disk: a teacher labels many crops of every image once, and students learn from what is stored."""

from .checks import ImageMismatchError, check_images
from .crops import CropSampling, cut_crop, draw_crops
from .dataset import SoftLabelDataset
from .labeler import label_dataset
from .metadata import LabelSettings, StoreMetadata
from .records import ImageLabels
from .recovery import RECOVERIES, recover_probabilities
from .store import DamagedStoreError, SoftLabelStore

__all__ = [
    "RECOVERIES",
    "CropSampling",
    "DamagedStoreError",
    "ImageLabels",
    "ImageMismatchError",
    "LabelSettings",
    "SoftLabelDataset",
    "SoftLabelStore",
    "StoreMetadata",
    "check_images",
    "cut_crop",
    "draw_crops",
    "label_dataset",
    "recover_probabilities",
]
