"""Stores of soft labels as data sets on the Hub."""

from __future__ import annotations

from collections.abc import Callable

from huggingface_hub import CommitInfo

from ..soft_labels import SoftLabelStore
from ..soft_labels.metadata import METADATA
from . import layout
from .publishing import DATASET, Target, check_target, publish_folder


def push_labels(
    store: SoftLabelStore, target: Target, report: Callable[[str], None] = lambda message: None
) -> CommitInfo:
    """Publish a store with its card, in one commit; every shard is compared with its checksum first.

    Raises:
        hf_vaq.hub.HubError: it cannot be published there.
        hf_vaq.soft_labels.DamagedStoreError: a shard is damaged.
    """
    if target.repo_type != DATASET:
        raise ValueError(f"repo_type is {target.repo_type!r}; accepted for soft labels: {DATASET!r}.")
    checked = check_target(target)
    report("comparing the shards with their checksums")
    store.verify()
    files = [layout.CARD, METADATA, *(shard.file for shard in store.metadata.shards)]
    return publish_folder(store.folder, checked, files=files, report=report)
