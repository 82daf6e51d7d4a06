"""Figures and lists in the documents are those of the committed results and of the code."""

import json
import re
from collections.abc import Iterator

import pytest
from document_helpers import ROOT, prose, text_of

from hf_vaq.integration.families import SUPPORTED

FAMILY_NAMES = {"vit": "ViT", "deit": "DeiT", "swin": "Swin", "dinov2": "DINOv2", "beit": "BEiT"}


def numbers(value: object) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def results() -> list[object]:
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def test_accuracies_in_the_readme_are_in_the_committed_results():
    measured = {f"{number:.2f}" for result in results() for number in numbers(result)}
    section = text_of("README.md").partition("\n## Measured\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"(?<![\d.])\d\d\.\d\d(?!\d)", section))
    assert len(named) > 5
    assert named <= measured


@pytest.mark.parametrize("document", ["README.md", "docs/index.md", "docs/quickstart.md", "docs/faq.md"])
def test_families_that_a_document_lists_are_all_that_are_supported(document):
    assert FAMILY_NAMES.keys() == set(SUPPORTED)
    lists = re.findall(r"\bViT, DeiT, [\w, ]*", " ".join(prose(document).split()))
    assert lists
    for listed in lists:
        assert {name for name in re.split(r"\W+", listed) if name in FAMILY_NAMES.values()} == set(
            FAMILY_NAMES.values()
        )
