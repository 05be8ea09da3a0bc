"""Model cards as HTML. Whatever a card holds is text: no HTML of its own, no links that open, no pictures from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|!?\[([^\]]*)\]\(([^)\s]*)[^)]*\)")
_RULE = re.compile(r"\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?")
_MOST = 200_000  # characters of a card


def card_html(text: str) -> str:
    """A card, which is Markdown with a head of metadata.

    Args:
        text: The card.

    Returns:
        HTML made of headings, paragraphs, lists, tables and code only; all text is escaped. Headings begin at the third level.
    """
    lines = text[:_MOST].splitlines()
    parts: list[str] = []
    if lines and lines[0].strip() == "---" and "---" in (line.strip() for line in lines[1:]):
        end = next(i for i, line in enumerate(lines[1:], 1) if line.strip() == "---")
        head = html.escape("\n".join(lines[1:end]))
        parts.append(f'<details><summary>Metadata</summary><pre tabindex="0">{head}</pre></details>')
        lines = lines[end + 1 :]
    parts += _blocks(lines)
    return f'<div class="ev-card">{"".join(parts)}</div>'


def _blocks(lines: Sequence[str]) -> list[str]:
    parts: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i].strip()
        if not line:
            i += 1
        elif line.startswith("```"):
            end = next((j for j in range(i + 1, len(lines)) if lines[j].strip().startswith("```")), len(lines))
            code = html.escape("\n".join(lines[i + 1 : end]))
            block = f'<pre tabindex="0"><code>{code}</code></pre>'
            long = end - i > 30
            parts.append(f"<details><summary>{end - i - 1} lines</summary>{block}</details>" if long else block)
            i = end + 1
        elif found := re.fullmatch(r"(#{1,6})\s+(.*)", line):
            level = min(6, len(found[1]) + 2)
            parts.append(f"<h{level}>{_inline(found[2])}</h{level}>")
            i += 1
        elif line.startswith("|") and i + 1 < len(lines) and _RULE.fullmatch(lines[i + 1].strip()):
            end = next((j for j in range(i, len(lines)) if not lines[j].strip().startswith("|")), len(lines))
            parts.append(_table([_cells(each) for each in (lines[i], *lines[i + 2 : end])]))
            i = end
        elif re.match(r"[-*] ", line):
            end = next((j for j in range(i, len(lines)) if not re.match(r"[-*] ", lines[j].strip())), len(lines))
            items = "".join(f"<li>{_inline(each.strip()[2:])}</li>" for each in lines[i:end])
            parts.append(f"<ul>{items}</ul>")
            i = end
        else:
            end = next((j for j in range(i + 1, len(lines)) if not _goes_on(lines[j])), len(lines))
            parts.append(f"<p>{_inline(' '.join(each.strip() for each in lines[i:end]))}</p>")
            i = end
    return parts


def _goes_on(line: str) -> bool:
    """Whether a line continues a paragraph."""
    text = line.strip()
    return bool(text) and not text.startswith(("```", "#", "|")) and not re.match(r"[-*] ", text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, body = rows[0], rows[1:]
    names = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head) if any(head) else ""
    lines = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{_inline(c)}</th>' if k == 0 else f"<td>{_inline(c)}</td>" for k, c in enumerate(row))
        + "</tr>"
        for row in body
    )
    top = f"<thead><tr>{names}</tr></thead>" if names else ""
    return (
        '<div class="ev-wide" role="region" tabindex="0" aria-label="Table of the card">'
        f'<table class="ev-table">{top}<tbody>{lines}</tbody></table></div>'
    )


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", inner)]


def _inline(text: str) -> str:
    """Code, bold, and links as their words with the address behind them; everything escaped."""
    out, last = [], 0
    for found in _INLINE.finditer(text):
        out.append(html.escape(text[last : found.start()]))
        code, bold, words, address = found.groups()
        if code is not None:
            out.append(f"<code>{html.escape(code)}</code>")
        elif bold is not None:
            out.append(f"<strong>{html.escape(bold)}</strong>")
        else:
            out.append(html.escape(f"{words} ({address})" if address and words != address else words or address))
        last = found.end()
    return "".join([*out, html.escape(text[last:])])
