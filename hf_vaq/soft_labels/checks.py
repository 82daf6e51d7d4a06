"""Whether a store belongs to the images it is to be used with."""

from __future__ import annotations

import numpy as np

from .images import EncodedImages
from .store import SoftLabelStore

CHECKED_IMAGES = 50_000
"""Data sets of up to so many images are compared image by image before training; of larger ones as many, evenly
spread. Every image is compared again whenever it is read for training."""


class ImageMismatchError(ValueError):
    """The images are not those that a store was made for, or not in that order."""


def check_images(store: SoftLabelStore, images: EncodedImages, limit: int = CHECKED_IMAGES) -> None:
    """Compare the images of a data set with those that were labelled: their number and, by their digests, themselves.

    Raises:
        ImageMismatchError: naming the first row that differs.
    """
    if len(images) != len(store):
        raise ImageMismatchError(
            f"soft_labels {str(store.folder)!r} label {len(store)} images, and the training split has {len(images)}: "
            f"they were made for {described_source(store)}."
        )
    digests = store.digests()
    for row in np.unique(np.linspace(0, len(store) - 1, min(limit, len(store))).astype(np.int64)):
        check_digest(store, int(row), images[int(row)].digest, int(digests[row]), digests)


def check_digest(
    store: SoftLabelStore, row: int, found: int, expected: int, digests: np.ndarray | None = None
) -> None:
    """Compare one image.

    Args:
        store: of the labels.
        row: of the image.
        found: digest of the image in the data set.
        expected: digest of the image that was labelled.
        digests: of all labelled images, to tell another order from another data set; read if not given.

    Raises:
        ImageMismatchError: they differ.
    """
    if found == expected:
        return
    places = np.flatnonzero((store.digests() if digests is None else digests) == np.uint64(found))
    if len(places):
        what = f"the image in row {row} of the training split was row {places[0]} when it was labelled: another order"
    else:
        what = f"the image in row {row} of the training split is not the one that was labelled, nor any other that was"
    raise ImageMismatchError(
        f"soft_labels {str(store.folder)!r} do not belong to these images: {what}. They were made for "
        f"{described_source(store)}; accepted: the same images, encoded alike, in the same order."
    )


def described_source(store: SoftLabelStore) -> str:
    """Say in words what a store was made for."""
    settings = store.settings
    config = f" ({settings.dataset_config})" if settings.dataset_config else ""
    split = f", split {settings.split}" if settings.split else ""
    return f"{settings.dataset}{config}{split}, {len(store)} images"
