"""Write the cards of the released recipes, from the committed results of their benchmarks.

    python hub_cards/released.py

Each of them is a page of its own below hub_cards/released/. What is published with a model is made by `hf-vaq push`
from the files of its run; these show what such a card looks like, with the figures of several seeds.
"""

from __future__ import annotations

import json
from pathlib import Path

from hf_vaq.hub.card import model_card
from hf_vaq.hub.facts import CardFacts
from hf_vaq.hub.records import accuracies_of_run, training_of_recipe
from hf_vaq.hub.scheme import planned_scheme
from hf_vaq.job.models import new_model_config
from hf_vaq.recipe import load_recipe

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "benchmarks" / "results" / "digits.json"
RECIPES = {"variation-aware": "digits/vit_w2a2", "plain LSQ": "digits/vit_w2a2_lsq"}
"""Recipes by the name that the results have for them."""
CLASSES = 10


def released_cards() -> dict[str, str]:
    """Return the text of every card, by the name of its recipe."""
    runs = json.loads(DIGITS.read_text(encoding="utf-8"))["measured"]
    return {name: _card(name, [run[key] for run in runs if key in run]) for key, name in RECIPES.items()}


def _card(name: str, results: list[dict]) -> str:
    recipe = load_recipe(name, ["--use_cpu"])
    config = new_model_config(recipe.model.model_config, [str(digit) for digit in range(CLASSES)])
    size = config.image_size
    quantization = recipe.quantization.config()
    facts = CardFacts(
        name=name.rpartition("/")[2],
        where=f"outputs/{name}/packed",
        architecture="ViTForImageClassification",
        num_classes=CLASSES,
        image_size=(size, size),
        quantization=quantization,
        scheme=planned_scheme(config, quantization),
        model_type=config.model_type,
        accuracies=[row for result in results for row in accuracies_of_run(result, with_seed=True)],
        training=training_of_recipe({key: value for key, value in recipe.values.items() if key != "use_cpu"}, name),
    )
    return str(model_card(facts))


def card_path(name: str) -> Path:
    """Return where the card of a recipe lies."""
    return HERE / "released" / f"{name.replace('/', '_')}.md"


if __name__ == "__main__":
    for name, card in released_cards().items():
        path = card_path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(card, encoding="utf-8")
        print(path)
