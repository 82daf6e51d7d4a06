"""CITATION.cff is valid, and says what the rest of the project says."""

import pytest
import yaml
from document_helpers import ROOT, text_of

import hf_vaq

CITATION = ROOT / "CITATION.cff"


def test_citation_file_follows_the_schema_of_its_format():
    cffconvert = pytest.importorskip("cffconvert", reason='needs pip install -e ".[docs]"')
    cffconvert.Citation(text_of("CITATION.cff")).validate()


def test_citation_names_this_version_and_the_paper_of_the_documents():
    citation = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    assert citation["version"] == hf_vaq.__version__
    paper = citation["preferred-citation"]
    reference = " ".join(text_of("docs/concepts.md").split())
    assert f"*{paper['title']}*" in reference
    assert str(paper["year"]) in reference and paper["url"] in reference
