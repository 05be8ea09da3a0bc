"""The page: its eight tabs, each from a file of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json

import gradio as gr

from atonce.studio.context import Studio

TABS: tuple[tuple[str, str, str], ...] = (
    ("Generate", "generate", "generate"),
    ("Edit", "edit", "edit"),
    ("Compare", "compare", "compare"),
    ("Train", "train", "train"),
    ("Data", "data", "data"),
    ("Evidence", "evidence", "evidence"),
    ("Return", "return", "returns"),
    ("Learn", "learn", "learn"),
)
"""Title, id, and module in :mod:`atonce.studio.tabs`."""

_HEAD = """<header class="at-head"><h1>atonce <span>studio</span></h1>
<form method="post" action="logout" class="at-logout" hidden><button type="submit">Sign out</button></form></header>"""


def build(studio: Studio) -> gr.Blocks:
    """The page, ready to be mounted.

    Args:
        studio: What its tabs work with.

    Returns:
        The blocks.
    """
    with gr.Blocks(title="atonce studio", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.HTML(_HEAD, elem_id="studio-head", apply_default_css=False, js_on_load=None)
        drawn = []
        with gr.Tabs(elem_id="studio-tabs") as tabs:
            for title, key, module in TABS:
                name = f"atonce.studio.tabs.{module}"
                if importlib.util.find_spec(name) is None:
                    continue
                with gr.Tab(title, id=key, elem_id=f"tab-{key}") as tab:
                    importlib.import_module(name).build(studio)
                tab.select(None, js=f"() => atonce.atTab('{key}')")
                drawn.append(key)
        blocks.load(None, None, tabs, js=f"() => atonce.tabOf({json.dumps(drawn)})")
    for function in blocks.fns.values():
        function.api_visibility = "private"  # the API of this service is /v1, not this page's events
    # Nor does the page carry a description of them: it would take a second to make.
    blocks.get_api_info = lambda *_, **__: {"named_endpoints": {}, "unnamed_endpoints": {}}
    return blocks.queue(default_concurrency_limit=16, max_size=256)
