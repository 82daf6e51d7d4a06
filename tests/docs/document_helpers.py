"""The documents of the project and their blocks of code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from sybil import Document
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[2]
FOLDERS = ("*.md", "docs/**/*.md", "recipes/**/*.md", "benchmarks/**/*.md", "examples/**/*.md", "hub_cards/*.md")
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for pattern in FOLDERS for path in ROOT.glob(pattern))
RUN_ELSEWHERE = {"docs/hub.md": "tests/hub/test_hub_document.py"}
"""Documents whose blocks need more than the stand-ins of `test_document_snippets.py`, and the test that runs them."""


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def parse(document: str, **evaluators) -> Document:
    """The document with its blocks in these languages, each as an example that its evaluator is for."""
    parsers = [CodeBlockParser(language, evaluator) for language, evaluator in evaluators.items()]
    return Document.parse(str(ROOT / document), *parsers)


def code_blocks(document: str, language: str) -> list[str]:
    return [str(example.parsed) for example in parse(document, **{language: print})]


def languages(document: str) -> list[str]:
    """Language of every block between fences, "" where there is none."""
    fences = re.findall(r"^[ >]*(?:```|~~~)(.*)$", text_of(document), re.MULTILINE)
    return [language.strip() for language in fences[::2]]


def prose(document: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def shell_commands(block: str) -> Iterator[list[str]]:
    """The single commands of a shell block, each as its words, without leading assignments of variables."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in ("&&", ";"):
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)
