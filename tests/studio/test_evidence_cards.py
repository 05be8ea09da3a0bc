"""Model cards are words: nothing that a card holds acts on the page."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.exchange.gallery import gallery_folder
from atonce.studio.evidence_cards import card_html

TAGS = {
    "div",
    "details",
    "summary",
    "pre",
    "code",
    "p",
    "ul",
    "li",
    "h3",
    "h4",
    "h5",
    "h6",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "strong",
}


def tags(shown: str) -> set[str]:
    return {name.lower() for name in re.findall(r"<([a-zA-Z][a-zA-Z0-9]*)", shown)}


def test_the_gallerys_cards_are_read_whole():
    for name in ("digits", "fashion-mnist"):
        shown = card_html((gallery_folder() / name / "README.md").read_text(encoding="utf-8"))
        assert f"<h3>{name}</h3>" in shown
        assert "<h4>Measured</h4>" in shown
        assert "sigma_data" in shown
        assert "<code>" in shown
        assert tags(shown) <= TAGS
        assert "|" not in re.sub(r"<pre.*?</pre>", "", shown, flags=re.S)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![pixel](https://elsewhere.example/pixel.png)",
        "[words](javascript:alert(1))",
        "---\nname: <script>\n---\n# <b>x</b>",
        "| <script> | b |\n| --- | --- |\n| <img src=x> | `<i>` |",
        "```html\n<script>\n```",
        "- <iframe src=x>\n- **<b>**",
        "<style>body{display:none}</style>",
        "&lt;script&gt;",
        '" onclick="x',
    ],
)
def test_nothing_acts(text: str):
    shown = card_html(text)
    assert tags(shown) <= TAGS
    assert not re.search(r"<[^>]*\s(on\w+|src|href|style)\s*=", shown)


@given(st.text(alphabet=st.sampled_from("<>&\"'`*[]()!|#-: \nabc/="), max_size=300))
def test_no_text_makes_another_tag(text: str):
    shown = card_html(text)
    assert tags(shown) <= TAGS
    assert not re.search(r"<[^>]*\s(on\w+|src|href|style)\s*=", shown)
    assert shown.count("<pre") == shown.count("</pre>")


def test_links_are_words_with_their_address():
    assert "the paper (https://arxiv.org/abs/2303.01469)" in card_html("See [the paper](https://arxiv.org/abs/2303.01469).")


def test_long_code_is_folded_and_huge_cards_end():
    assert "<summary>40 lines</summary>" in card_html("```\n" + "x\n" * 40 + "```")
    assert len(card_html("y" * 1_000_000)) < 300_000
