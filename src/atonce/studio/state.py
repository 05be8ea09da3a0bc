"""What survives a reload, and what is done when a page opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

SECRET = "atonce studio"  # hides nothing: what is kept is the person's own, in the person's own browser


def kept(tab: str, default: Any) -> gr.BrowserState:
    """A value that stays in this browser.

    Args:
        tab: Name of the tab; its values are kept under it.
        default: The value of a browser that has none; what JSON can hold.

    Returns:
        The component.
    """
    # A tab that is not open is not drawn, and what is not drawn knows nothing: so it stands beside the tabs, not in one.
    inside, Context.block = Context.block, Context.root_block or Context.block
    try:
        return gr.BrowserState(default, storage_key=f"atonce-{tab}", secret=SECRET)
    finally:
        Context.block = inside


def when_opened(fn: Callable[..., Any], inputs: Sequence[Any] | None = None, outputs: Sequence[Any] | None = None) -> Any:
    """Call a function whenever the page opens in a browser.

    Args:
        fn: What is called; with a parameter of the type gr.Request it learns who opens the page.
        inputs: Components whose values it gets.
        outputs: Components that it fills.

    Returns:
        Gradio's dependency.

    Raises:
        RuntimeError: It is called outside a page.
    """
    root = Context.root_block
    if root is None:
        raise RuntimeError("when_opened needs a page around it: call it in a tab's build")
    return root.load(fn, inputs, outputs, show_progress="hidden", queue=False)
