"""`push_to_hub` of packed models: with image processor and card, in one commit."""

from __future__ import annotations

import functools
from typing import Any

from transformers import PreTrainedModel


def publish_with_card(model: PreTrainedModel) -> None:
    """Make `model.push_to_hub` publish what a packed model needs, see `hf_vaq.hub.push_model`."""
    model.push_to_hub = functools.partial(_push_to_hub, model)


def _push_to_hub(model: PreTrainedModel, repo_id: str, **options: Any) -> Any:
    # Imported here, because few of those who load a model publish one.
    from ..hub import push_model

    return push_model(model, repo_id, **options)
