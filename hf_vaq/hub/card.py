"""The card of a model: metadata that the Hub indexes, and a page for people, both from data and never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.results import TASK, accuracy_results
from .facts import CardFacts
from .page import page_strings
from .records import Accuracy

_PACKAGE = Path(__file__).resolve().parents[1]


def templates_folder() -> Path:
    """Return the folder of the templates: inside an installed package, or at the top of the repository."""
    inside = _PACKAGE / "hub_card_templates"
    return inside if inside.is_dir() else _PACKAGE.parent / "hub_cards" / "templates"


def model_card(facts: CardFacts) -> ModelCard:
    """Render the card."""
    template = templates_folder() / "model_card.md.jinja"
    return ModelCard.from_template(card_metadata(facts), template_path=str(template), card=page_strings(facts))


def card_metadata(facts: CardFacts) -> ModelCardData:
    """Return what the Hub indexes."""
    relation = {"base_model_relation": "quantized"} if facts.base_model else {}
    results = _eval_results(facts.accuracies)
    tags = ["hf_vaq", "quantized", "low-bit", facts.bits.lower(), facts.model_type, "arxiv:2307.00331", *facts.tags]
    return ModelCardData(
        base_model=facts.base_model,
        **relation,
        library_name="transformers",
        pipeline_tag=TASK,
        license=facts.license,
        datasets=list(facts.datasets) or None,
        tags=list(dict.fromkeys(tags)),
        metrics=["accuracy"] if results else None,
        model_name=facts.name,
        eval_results=results or None,
    )


def _eval_results(accuracies: Sequence[Accuracy]) -> list[EvalResult]:
    """The accuracies of the model itself, as fractions; the first one where several are of the same images."""
    own: dict[tuple, Accuracy] = {}
    for accuracy in accuracies:
        if accuracy.is_this:
            own.setdefault((accuracy.dataset, accuracy.config, accuracy.split), accuracy)
    return [
        result
        for accuracy in own.values()
        for result in accuracy_results(
            {"top1": accuracy.top1, "top5": accuracy.top5},
            dataset_type=accuracy.dataset_id or accuracy.dataset,
            dataset_name=accuracy.dataset,
            dataset_config=accuracy.config,
            dataset_split=accuracy.split,
            dataset_revision=accuracy.revision,
        )
    ]
