"""Links of the documents lead somewhere, as files beside each other; the site's own links are the strict build's."""

import re
from urllib.parse import urlsplit

import pytest
from document_helpers import DOCUMENTS, ROOT, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
TOP_FOLDERS = ("hf_vaq", "recipes", "docs", "tests", "benchmarks", "hub_cards", "examples", ".ci")


def links(document: str) -> list[str]:
    return LINK.findall(prose(document))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_of_a_document_lead_somewhere(document):
    here = (ROOT / document).parent
    for target in links(document):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (here / path) if path else ROOT / document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_external_links_are_whole_https_addresses_and_those_of_papers_have_the_papers_number():
    external = {(target, document) for document in DOCUMENTS for target in links(document) if "://" in target}
    assert len(external) > 10
    for target, document in external:
        address = urlsplit(target)
        assert address.scheme == "https" and "." in address.netloc, f"{document}: {target}"
        if address.netloc == "arxiv.org":
            assert re.fullmatch(r"/abs/\d{4}\.\d{5}", address.path), f"{document}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paper_that_a_link_names_is_the_one_it_leads_to(document):
    for name, number in re.findall(r"\[arXiv:([^\]]*)\]\(https://arxiv.org/abs/([^)]*)\)", prose(document)):
        assert name == number


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_in_a_document_exist(document):
    for name in re.findall(rf"`((?:{'|'.join(map(re.escape, TOP_FOLDERS))})/[\w./-]*)`", prose(document)):
        assert (ROOT / name).exists(), name
