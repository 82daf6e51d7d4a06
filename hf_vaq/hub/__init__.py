"""Publishing: cards made from data, and commits to the Hub."""

from .card import model_card
from .completing import CardOptions, complete_model_folder
from .errors import HubError
from .facts import CardFacts
from .in_memory import push_model
from .publishing import Target, check_target, publish_folder
from .staging import stage_model

__all__ = [
    "CardFacts",
    "CardOptions",
    "HubError",
    "Target",
    "check_target",
    "complete_model_folder",
    "model_card",
    "publish_folder",
    "push_model",
    "stage_model",
]
