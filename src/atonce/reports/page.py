"""Pages: one self-contained HTML file each, in one style, light and dark, with a mark so that only ours is overwritten."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from atonce.core.errors import InputError
from atonce.core.files import write_text
from atonce.core.version import VERSION

_MARK = '<meta name="generator" content="atonce '
_HEAD = 4096  # bytes within which the mark of a page of ours stands

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fbfaf7; --line: #d8d4cb; --soft: #5d5a54;
  --good: #00694c; --bad: #b23c00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e6df; --paper: #1a1a1c; --line: #3c3b3a; --soft: #b3aea4; --good: #4cc9a0; --bad: #ff9a66; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 46rem; background: var(--paper); color: var(--ink);
  font: 1.05rem/1.6 Georgia, "Times New Roman", serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 2.4rem 0 .5rem; }
p.lead { font-size: 1.15rem; } p.small, figcaption, footer { color: var(--soft); font-size: .92rem; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block; }
img.pixels { image-rendering: pixelated; width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .97rem; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.kept { color: var(--good); } .missed { color: var(--bad); }
code, pre { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .86rem; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; padding: .8rem; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page that needs nothing from outside.

    Args:
        title: Of the window; plain text.
        body: HTML.
        style: Rules beside :data:`STYLE`.

    Returns:
        The document.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'{_MARK}{VERSION}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>{body}\n</body></html>\n"
    )


def data_uri(content: bytes) -> str:
    """A PNG or WebP file as an address that holds it."""
    kind = "webp" if content[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure(content: bytes, caption: str, alt: str, pixels: bool = False) -> str:
    """A picture with its caption.

    Args:
        content: The PNG or WebP file.
        caption: Plain text below it.
        alt: What it shows, for those who do not see it.
        pixels: Fill the width and keep pixels square.

    Returns:
        HTML.
    """
    kind = ' class="pixels"' if pixels else ""
    return (
        f'<figure><img{kind} alt="{html.escape(alt)}" src="{data_uri(content)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text that scrolls sideways where it is too wide; the first cell of a row is its heading.

    Args:
        head: Names of the columns; none for a table of facts.
        rows: Cells.

    Returns:
        HTML.
    """
    return f'<div class="wide"><table>{table_rows(head, rows)}</table></div>'


def table_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The inside of a table. Arguments as for :func:`table`."""
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"{f'<thead><tr>{names}</tr></thead>' if head else ''}<tbody>{body}</tbody>"


def check_page(path: Path) -> None:
    """Refuse a place where a page cannot or must not be written.

    Args:
        path: Where the page is to go.

    Raises:
        InputError: It is no ``.html``, a folder, or a file that is not ours.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a page cannot be written as {path.suffix or 'a name without a suffix'!r} ({path}): give NAME.html")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file, {path.name}/NAME.html")
    if path.exists() and not is_page(path):
        raise InputError(f"{path} exists and was not made by atonce: choose another name, nothing was changed")


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours."""
    try:
        with open(path, "rb") as file:
            return _MARK.encode() in file.read(_HEAD)
    except OSError:
        return False


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Args:
        path: The file.
        page: Of :func:`document`.

    Raises:
        InputError: See :func:`check_page`.
        StorageError: Writing failed.
    """
    check_page(path)
    write_text(path, page)
