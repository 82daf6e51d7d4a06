"""The picture of the README shows what the committed results say."""

import json
import re
from xml.etree import ElementTree

import pytest
from document_helpers import ROOT


def measured(name: str) -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["measured"]


@pytest.fixture
def texts() -> list[str]:
    figure = ElementTree.parse(ROOT / "docs" / "figures" / "size_and_accuracy.svg")
    return ["".join(element.itertext()) for element in figure.iter("{http://www.w3.org/2000/svg}text")]


def test_picture_shows_top1_of_every_measured_model(texts):
    expected = [
        f"{run[form]['top1']:.2f}" for run in measured("imagenette") for form in ("full_precision", "quantized")
    ]
    runs = [run["variation-aware"] for run in measured("digits")]
    expected += [", ".join(f"{run[form]['top1']:.2f}" for run in runs) for form in ("full_precision", "quantized")]
    assert set(expected) <= set(texts)


def test_picture_shows_size_of_every_packed_model_and_its_share_of_full_precision(texts):
    for run in [*measured("imagenette"), measured("digits")[0]["variation-aware"]]:
        float_size, size = run["full_precision"]["size_bytes"], run["quantized"]["size_bytes"]
        assert f"{size / 1e6:.2f} MB, 1 / {float_size / size:.1f}" in texts
        assert f"{float_size / 1e6:.2f} MB" in texts


def test_picture_has_no_date_so_that_drawing_it_again_changes_nothing():
    assert not re.search(r"<dc:date>", (ROOT / "docs" / "figures" / "size_and_accuracy.svg").read_text())
