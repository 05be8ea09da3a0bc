"""Pieces of the page of an inspection: labelled rows of small images, plots, and the two kinds of sentences."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from atonce.core.images import tile, to_uint8
from atonce.reports.page import data_uri, figure
from atonce.reports.pictures import png_bytes
from atonce.reports.plots import png

_LARGEST = 96  # side to which larger images are reduced
_LOSSLESS = 32  # side up to which images are kept as they are

STYLE = """
.limit { color: var(--soft); font-size: .95rem; border-left: 3px solid var(--line); padding-left: .7rem; }
.strips { display: grid; grid-template-columns: 5.6rem minmax(calc(var(--n) * 2.6rem), 1fr); gap: .3rem .6rem;
  align-items: center; margin: .7rem 0; max-width: calc(6.2rem + var(--n) * 4.8rem); font-size: .82rem; line-height: 1.25; }
.strips > .label { position: sticky; left: 0; background: var(--paper); align-self: stretch; display: flex;
  align-items: center; overflow-wrap: anywhere; z-index: 1; }
.strips > .head { display: grid; grid-template-columns: repeat(var(--n), 1fr); text-align: center; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.strips img { border-radius: 0; }
@media (max-width: 40rem) { .strips { grid-template-columns: 4.2rem minmax(calc(var(--n) * 2.6rem), 1fr); } }
"""


def strips(head: Sequence[str] | None, rows: Sequence[tuple[str, Tensor]], alt: str, corner: str = "") -> str:
    """Rows of images, each with its label; they scroll sideways where there is too little room.

    Args:
        head: A word over each column.
        rows: Label and images float [k, C, H, W] in [-1, 1] of each row.
        alt: What they show, for those who do not see it.
        corner: What the words over the columns are.

    Returns:
        HTML.
    """
    n = len(rows[0][1])
    cells = ""
    if head is not None:
        words = "".join(f"<span>{html.escape(word)}</span>" for word in head)
        cells = f'<div class="label">{html.escape(corner)}</div><div class="head">{words}</div>'
    for label, images in rows:
        described = html.escape(f"{label}: {alt}")
        source = data_uri(picture(images, n))
        cells += f'<div class="label">{html.escape(label)}</div><img class="pixels" alt="{described}" src="{source}">'
    return f'<div class="wide"><div class="strips" style="--n:{n}">{cells}</div></div>'


def picture(images: Tensor, columns: int | None = None) -> bytes:
    """Images in rows as the content of a file: PNG where they are small, else WebP of at most 96 pixels a side.

    Args:
        images: float [k, C, H, W] in [-1, 1], C of 1 or 3.
        columns: Images in a row; default: about as many as rows.

    Returns:
        The file.
    """
    from PIL import Image

    side = max(images.shape[2:])
    if side > _LARGEST:
        images = interpolate(images.float(), scale_factor=_LARGEST / side, mode="area")
    sheet = tile(to_uint8(images), columns, gap=2, scale=max(1, 56 // side))
    if side <= _LOSSLESS:
        return png_bytes(sheet[..., 0].contiguous() if images.shape[1] == 1 else sheet)
    content = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(content, format="WEBP", quality=88)
    return content.getvalue()


def plot(drawn: Figure, alt: str) -> str:
    """A plot without a caption, as HTML."""
    return figure(png(drawn), "", alt).replace("<figcaption></figcaption>", "")


def reading(text: str) -> str:
    """The sentence on how to read what follows, as HTML."""
    return f"<p>{html.escape(text)}</p>\n"


def limit(text: str) -> str:
    """The sentence on what the part cannot say, as HTML."""
    return f'<p class="limit"><b>What it cannot say.</b> {html.escape(text)}</p>\n'


def sigma_text(sigma: float) -> str:
    """A noise level in two digits or so."""
    return f"{sigma:.2g}" if sigma < 10 else f"{sigma:.0f}"


def count_text(n: int, thing: str) -> str:
    """A count with its noun in the right number."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
