"""Under which full name and commit the Hub keeps a data set or a model."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from .loading import is_on_the_hub

logger = logging.get_logger(__name__)

# Its base is the error of the HTTP client, which is what a failed connection raises; which client, it does not tell.
_HUB_ERRORS = (*HfHubHTTPError.__bases__, OSError)


def hub_identity(
    name: str | Path, revision: str | None = None, *, repo_type: str = "dataset"
) -> tuple[str | None, str | None]:
    """Return id and commit of a data set: ("ILSVRC/imagenet-1k", "49e2...") for "imagenet-1k", which the Hub resolves.

    Args:
        name: as it was given for loading.
        revision: branch, tag or commit; None for the main branch.
        repo_type: "dataset" or "model".

    Returns:
        Twice None for what is bundled or local, and where the Hub cannot be asked (what was loaded is from the cache).
    """
    if not is_on_the_hub(name):
        return None, None
    try:
        info = HfApi().repo_info(str(name), revision=revision, repo_type=repo_type)
    except _HUB_ERRORS as error:
        logger.info("The Hub does not tell id and commit of the %s %s: %s", repo_type, name, error)
        return None, None
    return info.id, info.sha
