"""The Return tab: what one step saves against many, with every number in sight, live while a slider moves."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from typing import Any

import gradio as gr

from atonce.planning.estimate import duration_text
from atonce.studio.context import Studio, charge, engine_of, person, problem
from atonce.studio.returns_form import form_html
from atonce.studio.returns_measure import MOST_STEPS, Plan, form_values, measure, plan, stand_in
from atonce.studio.returns_page import refused, results
from atonce.studio.returns_published import begin_with
from atonce.studio.returns_work import Wrong, beginning, read, reckon

SAME = "the same network, 35 calls"
_MOUNT = (
    "(function mount() { const returns = window.atonce && window.atonce.returns; "
    "if (returns) { returns.mount(element, trigger); } else { setTimeout(mount, 30); } })();"
)


def build(studio: Studio) -> None:
    """Make the tab inside the current Blocks.

    Args:
        studio: What it works with.
    """
    gr.HTML(
        '<p class="at-lead">What it brings to make images in one step instead of many: cost, energy, latency, and when the '
        "change has paid for itself. Each number says where it comes from, and each can be changed.</p>"
    )
    with gr.Row(elem_id="return-columns"):
        with gr.Column(scale=5, min_width=320):
            names = studio.service.hosts.names()
            with gr.Accordion("Measure on this machine", open=False, elem_id="return-measure"):
                gr.HTML(
                    '<p class="at-note">Times models of this service: throughput in batches, and single images alone. The '
                    "numbers replace those of the form and are marked as measured.</p>"
                )
                after = gr.Dropdown(names, value=names[0] if names else None, label="After: model", elem_id="return-after")
                steps = gr.Number(1, label="Its steps", precision=0, elem_id="return-steps", info=f"1 to {MOST_STEPS}")
                before = gr.Dropdown([SAME, *names], value=SAME, label="Before: baseline", elem_id="return-before")
                before_steps = gr.Number(
                    18,
                    label="Steps of the baseline",
                    precision=0,
                    elem_id="return-before-steps",
                    info="of a model; 18 Heun steps of a diffusion model are 35 calls",
                )
                with gr.Row():
                    begin = gr.Button("Measure", variant="primary", elem_id="return-begin")
                    end = gr.Button("Stop", elem_id="return-stop")
                status = gr.HTML("", elem_id="return-status")
            form = gr.HTML(html_template=form_html(), js_on_load=_MOUNT, elem_id="return-inputs", apply_default_css=False)
            told = gr.HTML("", elem_id="return-told", elem_classes="at-hidden")
        with gr.Column(scale=6, min_width=320):
            first = read(beginning())
            shown = gr.HTML(results(first, reckon(first)), elem_id="return-results", apply_default_css=False)

    form.input(reckoned, None, shown, queue=False, show_progress="hidden", trigger_mode="always_last")
    form.select(published, None, told, queue=False, show_progress="hidden")

    async def measured(
        model: str, count: float | None, base: str, base_count: float | None, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        async for each in _measured(studio, model, count, base, base_count, request):
            yield each

    running = begin.click(
        measured,
        [after, steps, before, before_steps],
        [status, told],
        show_progress="hidden",
        concurrency_limit=2,
        concurrency_id="return-measure",
    )
    stopped = end.click(None, None, None, cancels=[running])
    stopped.then(lambda: _said("Stopped: nothing was changed."), None, status, queue=False, show_progress="hidden")


def reckoned(event: gr.EventData) -> str:
    """The results for what the form sent.

    Args:
        event: Of the form.

    Returns:
        HTML; where numbers are wrong, what is wrong with them.

    Raises:
        problem: It went wrong here.
    """
    try:
        form = read(event._data)
        return results(form, reckon(form))
    except Wrong as wrong:
        return refused(wrong.lines)
    except Exception as error:
        raise problem(error) from error


def published(event: gr.EventData) -> str:
    """The form with a published choice put in.

    Args:
        event: Of the form: ``title`` and ``state``.

    Returns:
        HTML that the form reads.

    Raises:
        Error: There is no such choice.
    """
    sent: Any = event._data
    try:
        return _form(begin_with(sent["state"], sent["title"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise gr.Error("there is no such choice: load the page again", print_exception=False) from None


async def _measured(
    studio: Studio, model: str, count: object, base: str, base_count: object, request: gr.Request
) -> AsyncIterator[tuple[Any, ...]]:
    """Measure both ways, one after the other, and tell how far it is."""
    who = person(request)
    stop, said = threading.Event(), [""]
    try:
        last = plan(engine_of(studio, who, model), count)
        first = stand_in(last) if base == SAME else plan(engine_of(studio, who, base), base_count)
        await charge(studio, who, first.images + last.images)
        ways, begun, expected = [], time.monotonic(), first.seconds + last.seconds
        for made in (first, last):
            work = asyncio.create_task(asyncio.to_thread(measure, made, stop, lambda text: said.__setitem__(0, text)))
            work.add_done_callback(lambda task: task.cancelled() or task.exception())  # it is told below, or not asked for
            try:
                while not work.done():
                    yield _progress(made, said[0], time.monotonic() - begun, expected), gr.skip()
                    await asyncio.wait([work], timeout=0.5)
            finally:
                stop.set() if not work.done() else None
            ways.append(work.result())
        seconds = time.monotonic() - begun
        yield _said(f"Measured in {duration_text(seconds)}; the numbers are in the form."), _form(form_values(*ways))
    except CancelledError:
        yield _said("Stopped: nothing was changed."), gr.skip()
    except Exception as error:
        raise problem(error) from error
    finally:
        with contextlib.suppress(RuntimeError):
            stop.set()


def _progress(made: Plan, text: str, gone: float, expected: float) -> str:
    left = expected - gone
    rest = (
        f"about {duration_text(left)} left" if left > 1 else "soon done" if left > -0.3 * expected else "longer than expected"
    )
    return _said(f"{made.name}: {text or 'begins'}; {duration_text(max(gone, 0.1))} gone, {rest}")


def _said(line: str) -> str:
    return f'<p class="return-soft" role="status">{html.escape(line)}</p>'


def _form(values: dict[str, Any]) -> str:
    return f'<div data-form="{html.escape(json.dumps(values))}" data-at="{time.monotonic_ns()}"></div>'
