"""What the inputs of a run hold, in a few words that differ when they do: images, models, stored labels."""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from pathlib import Path

from ..data import LabelledSplit
from ..soft_labels import SoftLabelStore
from ..soft_labels.images import EncodedImages
from ..soft_labels.metadata import METADATA
from .models import load_config

SAMPLED_IMAGES = 64
"""Images of a split whose bytes are compared; of all of them the number and the labels are."""
SAMPLED_OF_A_STREAM = 8
_MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")


def describe_images(split: LabelledSplit) -> str:
    """Return number of rows, and a hash of the class names, all labels, and the bytes of `SAMPLED_IMAGES` images.

    The images are those of rows spread evenly, so another image elsewhere goes unnoticed. Of a stream, which would
    have to be read to its end, the class names and the first images are taken.

    Raises:
        ImageDecodeError: one of these images is missing.
    """
    digest = blake2b(digest_size=8)
    digest.update(repr(split.rows.features[split.label_column]).encode())
    images = EncodedImages(split.rows, split.image_column)
    if split.streams:
        sampled = islice(images.stream(), SAMPLED_OF_A_STREAM)
        rows = "a stream"
    else:
        digest.update(repr(split.rows.with_format("arrow")[split.label_column][:].to_pylist()).encode())
        number = len(images)
        wanted = sorted({index * number // SAMPLED_IMAGES for index in range(SAMPLED_IMAGES)})
        sampled = (images[row] for row in wanted)
        rows = f"{number} rows"
    for image in sampled:
        digest.update(image.digest.to_bytes(8, "little"))
    return f"{rows}, hash {digest.hexdigest()}"


def describe_model(model: str | Path) -> str:
    """Return the commit of a model on the Hub, or a hash of a folder's configuration and weights."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"commit {getattr(load_config(model), '_commit_hash', None) or 'unknown'}"
    digest = blake2b(digest_size=8)
    for path in sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return f"hash {digest.hexdigest()}"


def describe_store(store: SoftLabelStore) -> str:
    """Return a hash of what a store of soft labels says of itself, which holds the checksums of its shards."""
    return f"hash {blake2b((store.folder / METADATA).read_bytes(), digest_size=8).hexdigest()}"
