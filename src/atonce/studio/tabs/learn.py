"""The Learn tab: what consistency means, in a plane where every answer is known. It runs in the browser alone."""

from __future__ import annotations

import gradio as gr

from atonce.studio.context import Studio
from atonce.studio.learn_page import page_html

_MOUNT = (
    "(function mount() { const learn = window.atonce && window.atonce.learn; "
    "if (!learn || !learn.mount || !learn.quiz) { setTimeout(mount, 30); return; } "
    "learn.mount(element); learn.quiz(element); })();"
)


def build(studio: Studio) -> None:
    """Make the tab inside the current Blocks.

    Args:
        studio: Not needed: nothing is asked of the service.
    """
    gr.HTML(
        '<p class="at-lead">How one call can do the work of many. The data live in a plane, so that every trajectory can be '
        "seen and every exact answer is known. Drag the point.</p>"
    )
    gr.HTML(page_html(), js_on_load=_MOUNT, elem_id="learn", apply_default_css=False)
