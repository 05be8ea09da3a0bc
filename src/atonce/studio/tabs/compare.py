"""The tab Compare: one step, two, four, a teacher, several models, side by side with seconds, calls and cost."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from atonce.core.errors import InputError
from atonce.studio import compare_page, compare_work
from atonce.studio.compare_work import Outcome
from atonce.studio.context import Studio, allow, person, problem
from atonce.studio.generate_work import DRAWN, SEEDS, wish_of
from atonce.studio.state import kept, when_opened

CURRENCY = "USD"


def build(studio: Studio) -> None:
    """Make the tab.

    Args:
        studio: The studio.
    """
    ways = compare_work.ways_of(studio)
    labels = sorted({label for way in ways for label in studio.service.hosts.host(way.model).engine("").model.labels or ()})
    memory = kept("compare", {})
    gr.HTML('<p class="at-lead">The same seeds in several ways: what a step more brings, and what it costs.</p>')
    with gr.Row():
        with gr.Column(scale=6, min_width=320):
            choice = gr.CheckboxGroup(
                [(way.name, way.key) for way in ways], value=compare_work.usual(ways), label="Ways", elem_id="compare-ways"
            )
        with gr.Column(scale=4, min_width=320):
            with gr.Row():
                seed = gr.Number(
                    0, label="First seed", precision=0, minimum=0, maximum=SEEDS - 1, elem_id="compare-seed", min_width=120
                )
                count = gr.Dropdown(list(compare_work.COUNTS), value=8, label="Seeds", elem_id="compare-count", min_width=120)
            label = gr.Dropdown(
                [("drawn from the seed", DRAWN), *((name, name) for name in labels)], value=DRAWN, label="Label",
                elem_id="compare-label", visible=bool(labels),
            )  # fmt: skip
            with gr.Row():
                price = gr.Number(2.5, label=f"Device hour, {CURRENCY}", minimum=0, elem_id="compare-price", min_width=120)
                busy = gr.Number(50, label="Busy share, %", elem_id="compare-busy", min_width=120)
    with gr.Row():
        run = gr.Button("Compare", variant="primary", elem_id="compare-run")
        stop = gr.Button("Stop", elem_id="compare-stop", interactive=False)
    progress = gr.HTML("", elem_id="compare-progress", apply_default_css=False)
    result = gr.HTML(compare_page.page([], [], CURRENCY), elem_id="compare-result", apply_default_css=False)
    current = gr.State([])

    async def compares(
        request: gr.Request, keys: list[str], first: float | None, n: Any, name: str, hour: float | None, share: float | None
    ) -> AsyncIterator[tuple[Any, ...]]:
        who = person(request)
        outcomes: list[Outcome] = []
        begun = time.monotonic()
        try:
            allow(studio, who, "generate")
            wanted = compare_work.chosen(ways, keys, n)
            wish = wish_of("", first, name, 1, None, None)
            if not 0 <= wish.seed < SEEDS:
                raise InputError(f"the first seed is {wish.seed}, must be from 0 to {SEEDS - 1}")
            compare_work.costs_of([], hour, share)
            yield _told(0, len(wanted), begun, wanted[0].name), gr.skip(), [], gr.update(interactive=True), gr.skip()
            async with aclosing(compare_work.compare(studio, who, wanted, wish.seed, n, wish.label)) as going:
                async for outcome in going:
                    outcomes.append(outcome)
                    done = len(outcomes)
                    following = wanted[done].name if done < len(wanted) else ""
                    yield (
                        _told(done, len(wanted), begun, following),
                        _page(outcomes, hour, share),
                        outcomes,
                        gr.update(interactive=done < len(wanted)),
                        {"price": hour, "busy": share, "ways": keys, "seed": wish.seed, "count": n, "label": name},
                    )
            await asyncio.to_thread(compare_work.save, who.folder, outcomes)
        except Exception as error:
            raise problem(error) from error

    def stopped(request: gr.Request, outcomes: list[Outcome]) -> tuple[str, Any]:
        who = person(request)
        if outcomes:
            compare_work.save(who.folder, outcomes)
        said = f"Stopped after {len(outcomes)} way{'s' if len(outcomes) != 1 else ''}."
        return f'<p class="at-note" role="status">{said}</p>', gr.update(interactive=False)

    def priced(request: gr.Request, outcomes: list[Outcome], hour: float | None, share: float | None) -> tuple[Any, Any]:
        person(request)
        try:
            return _page(outcomes, hour, share), ""
        except InputError as wrong:
            return gr.skip(), f'<p class="at-warn" role="alert">{html.escape(str(wrong))}</p>'

    async def opened(request: gr.Request, values: Any) -> tuple[Any, ...]:
        who = person(request)
        outcomes = await asyncio.to_thread(compare_work.load, who.folder)
        known = values if isinstance(values, dict) else {}
        keys = [key for key in known.get("ways", ()) if key in {way.key for way in ways}] or compare_work.usual(ways)
        hour, share = _number(known.get("price"), 2.5), _number(known.get("busy"), 50.0)
        try:
            shown = _page(outcomes, hour, share)
        except InputError:
            hour, share = 2.5, 50.0
            shown = _page(outcomes, hour, share)
        seeds = known.get("count") if known.get("count") in compare_work.COUNTS else 8
        named = known.get("label") if known.get("label") in labels else DRAWN
        return keys, int(_number(known.get("seed"), 0)) % SEEDS, seeds, named, hour, share, shown, outcomes

    inputs = [choice, seed, count, label, price, busy]
    going = run.click(compares, inputs, [progress, result, current, stop, memory], show_progress="hidden", concurrency_limit=4)
    going.failure(lambda: ("", gr.update(interactive=False)), None, [progress, stop], queue=False, show_progress="hidden")
    stop.click(stopped, current, [progress, stop], cancels=[going], queue=False, show_progress="hidden")
    gr.on(
        [price.change, busy.change],
        priced,
        [current, price, busy],
        [result, progress],
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
    )
    when_opened(opened, [memory], [*inputs, result, current])


def _page(outcomes: list[Outcome], hour: float | None, share: float | None) -> str:
    return compare_page.page(outcomes, compare_work.costs_of(outcomes, hour, share, CURRENCY), CURRENCY)


def _told(done: int, total: int, begun: float, following: str) -> str:
    seconds = time.monotonic() - begun
    if done == total:
        return f'<p class="at-note" role="status">{total} way{"s" if total != 1 else ""} compared in {seconds:.1f} s.</p>'
    left = f", about {seconds / done * (total - done):.0f} s left" if done else ""
    return (
        f'<div role="status"><p class="at-note">{done} of {total} done{left}. Now: {html.escape(following)}</p>'
        f'<div class="at-bar"><i style="width:{100 * done / total:.0f}%"></i></div></div>'
    )


def _number(value: Any, other: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else other
