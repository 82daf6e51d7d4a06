"""Names that others chose stay what they are in Markdown: rendered by an independent reader, they come back."""

import re

import pytest

from hf_vaq.markdown import code, plain

HOSTILE = [
    "vit_w2a2",
    "_both_ and *stars* and **two**",
    "a|b",
    "[text](https://example.org)",
    "![pixel](https://example.org/x.png)",
    "<script>alert(1)</script>",
    "<b>",
    "$\\alpha$ and \\n",
    "`code` and ``more``",
    "~~gone~~",
    "&lt;b&gt; &#60; R&D",
    "| --- |",
]


def rendered(text):
    """What a reader sees of `text`, where every special character has to be escaped or stand for itself."""
    for special in re.finditer(r"(?<!\\)(?:\\\\)*([`*\[\]<|~$])", text):
        raise AssertionError(f"{special[1]!r} is not escaped in {text!r}")
    return re.sub(r"\\([^\w\s])|\\(_)", lambda found: found[1] or found[2], re.sub(r"(?<!\\)&\S+;", "entity", text))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_shows_as_it_is(text):
    assert rendered(plain(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vit_w2a2 0.001 R&D 5 - 3 # 1", "vit_w2a2 0.001 R&D 5 - 3 # 1"),
        ("_x_", r"\_x\_"),
        ("a|b", r"a\|b"),
        ("<b>", r"\<b>"),
        ("&lt;", r"\&lt;"),
        ("one\n\n# two\r\n---\u2028three\x00", "one # two --- three"),
    ],
)
def test_only_what_would_be_markup_is_escaped(text, expected):
    assert plain(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", "`org/name`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("a|b\n|c|", r"`a\|b \|c\|`"),
        ("", "` `"),
    ],
)
def test_code_ends_where_it_should(text, expected):
    assert code(text) == expected
