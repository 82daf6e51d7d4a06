"""The documentation builds without a warning, and its reference has every public name."""

import importlib
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml
from document_helpers import ROOT
from filelock import FileLock

from hf_vaq.cli import COMMANDS
from hf_vaq.recipe.parsing import SECTIONS

pytest.importorskip("mkdocs", reason='needs pip install -e ".[docs]"')
pytest.importorskip("mkdocstrings", reason='needs pip install -e ".[docs]"')
PUBLIC_MODULES = (
    "hf_vaq",
    "hf_vaq.inference",
    "hf_vaq.soft_labels",
    "hf_vaq.evaluation",
    "hf_vaq.hub",
    "hf_vaq.export",
    "hf_vaq.speed",
    "hf_vaq.analysis",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site, one for all of pytest's processes.

    The build is strict: a missing page, link or anchor ends it (unless it is --quiet).
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    folder, partial = base / "documentation", base / "documentation.partial"
    with FileLock(base / "documentation.lock"):
        if not folder.is_dir():
            built = subprocess.run(
                [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(partial)],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            complaints = [line for line in built.stderr.splitlines() if re.match("WARNING|ERROR|Aborted", line)]
            assert built.returncode == 0, "\n".join(complaints) or built.stderr
            partial.rename(folder)
    return folder


def documented_names(site: Path) -> set[str]:
    """Names of objects in the inventory that other projects' Sphinx and MkDocs read."""
    header, _, compressed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2")
    return {line.split()[0] for line in zlib.decompress(compressed).decode().splitlines() if line}


def test_every_page_can_be_reached_by_turning_pages_from_the_first(site):
    reached, page = set(), site / "index.html"
    while page not in reached:
        reached.add(page)
        following = re.search(r'<a href="([^"]*)"[^>]*class="md-footer__link md-footer__link--next"', page.read_text())
        if following is not None:
            target = (page.parent / following[1]).resolve()
            page = target / "index.html" if target.is_dir() else target
    written = {page.resolve() for page in site.rglob("*.html") if page.name != "404.html"}
    assert {page.resolve() for page in reached} == written


def test_reference_has_every_public_name(site):
    documented = documented_names(site)
    for module in PUBLIC_MODULES:
        names = [name for name in importlib.import_module(module).__all__ if not name.isupper()]
        missing = [name for name in names if name != "__version__" and f"{module}.{name}" not in documented]
        assert not missing, f"{module}: {missing}; add them to docs/reference/"


def test_reference_describes_every_command_and_every_field_of_a_recipe(site):
    commands = (site / "reference" / "command_line" / "index.html").read_text()
    for name in COMMANDS:
        assert f'id="hf-vaq-{name}' in commands
    fields = (site / "reference" / "recipe_fields" / "index.html").read_text()
    for section in SECTIONS:
        for name in section.__annotations__:
            assert f"<code>{name}</code>" in fields, f"{section.__name__}.{name}"


def test_pages_ask_nothing_of_other_servers(site):
    for page in site.rglob("*.html"):
        asked = re.findall(r'<(?:script|img|iframe)[^>]* src="(https?:[^"]*)"', page.read_text())
        styles = re.findall(r'<link[^>]* rel="stylesheet"[^>]* href="(https?:[^"]*)"', page.read_text())
        assert not asked + styles, page


def test_external_links_are_listed_with_their_pages(site):
    lines = (site / "external_links.txt").read_text().splitlines()
    assert "https://arxiv.org/abs/2307.00331 concepts.md" in lines
    assert all(re.fullmatch(r"https?://\S+ \S+\.md", line) for line in lines)


def test_every_warning_of_the_build_is_an_error():
    class Loader(yaml.SafeLoader):
        """Leaves out what only mkdocs can build."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    configuration = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    assert configuration["strict"] is True
    checks = [level for group in configuration["validation"].values() for level in group.values()]
    assert checks and set(checks) == {"warn"}
