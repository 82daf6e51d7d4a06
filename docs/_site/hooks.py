"""Hooks of the documentation build: files of the repository outside `docs/`, and the links that lead to other sites.

The documents are read in two places: on a git host, where `../recipes/digits/README.md` is a file beside `docs/`, and
on the built site, whose root is `docs/`. Here a linked file outside `docs/` becomes part of the site, and the link is
rewritten; so the strict build checks it like any other. A folder is no page: of a link to one the text remains.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

EXTERNAL_LINKS = "external_links.txt"
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "recipes/*/README.md")
"""Documents outside `docs/` that are pages of the site."""
LANDING_PAGES = {"README.md": "index.md"}
"""What on a git host is another file, is this page on the site."""
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!https?:|mailto:|#)(?P<target>[^)\s#]+)(?P<rest>[^)]*)\)")
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)

_external: set[str] = set()


def on_pre_build(config: MkDocsConfig) -> None:
    """Forget the links of an earlier build in the same process."""
    _external.clear()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside `docs/`, and every file that a page links to there."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    waiting = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    for path in waiting:
        _add(files, config, path.relative_to(root).as_posix(), path)
    waiting += [docs / file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    while waiting:
        page = waiting.pop()
        for link in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
            linked = Path(os.path.normpath(page.parent / link["target"]))
            if not linked.is_file() or not linked.is_relative_to(root) or linked.is_relative_to(docs):
                continue
            uri = linked.relative_to(root).as_posix()
            if uri not in LANDING_PAGES and files.get_file_from_path(uri) is None:
                _add(files, config, uri, linked)
                waiting += [linked] if linked.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between `docs/` and the rest of the repository lead to the same file on the site."""
    root, docs = Path(config.config_file_path).parent, posixpath.basename(config.docs_dir)
    in_repository = page.file.src_uri if page.file.generated_by else f"{docs}/{page.file.src_uri}"
    here = posixpath.dirname(in_repository)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match["target"]))
        if (root / target).is_dir():
            return match["text"]
        target = LANDING_PAGES.get(target, target.removeprefix(f"{docs}/"))
        target = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{match['text']}]({target}{match['rest']})"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(rewrite, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(rewrite, markdown[end:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Collect what leads to other sites; the build has no need of a network, so nothing is fetched."""
    links = re.findall(r'<a [^>]*href="(https?://[^"]+)"', html)
    _external.update(f"{link} {page.file.src_uri}" for link in links)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the list of external links: one line a link, with the page that has it."""
    Path(config.site_dir, EXTERNAL_LINKS).write_text("".join(f"{line}\n" for line in sorted(_external)), "utf-8")


def _add(files: Files, config: MkDocsConfig, uri: str, path: Path) -> None:
    files.append(File.generated(config, uri, abs_src_path=str(path)))
