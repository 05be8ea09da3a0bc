"""The Evidence tab: charts from records, published numbers beside ours, model cards, and the inside of a model."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atonce.studio.context import Studio, allow, charge, person, problem
from atonce.studio.evidence_desk import CARDS, INSPECTION, SECTIONS, Desk
from atonce.studio.state import kept, when_opened

_TICK = 1.0  # seconds between two looks at an inspection
_COUNTED = 1000  # images that an inspection counts for, about as many as go through the network


def build(studio: Studio) -> None:
    """Make the tab inside the current Blocks.

    Args:
        studio: What it works with.
    """
    desk = Desk(studio)
    names = studio.service.hosts.names()
    state = kept("evidence", None)  # section, card, model
    gr.HTML(
        '<p class="at-lead">What is known, and how: every number here comes from a record that can be made again, or from a '
        "paper that is named.</p>"
    )
    section = gr.Radio(list(SECTIONS), value=SECTIONS[0], label="Show", elem_id="evidence-section")
    charts = gr.HTML(elem_id="evidence-charts", container=False)
    with gr.Column(visible=False) as cards:
        model = gr.Dropdown([], label="Model", elem_id="evidence-card-of")
        card = gr.HTML(elem_id="evidence-card", container=False)
    with gr.Column(visible=False) as inside:
        served = gr.Dropdown(names, value=names[0] if names else None, label="Served model", elem_id="evidence-model")
        with gr.Row():
            make = gr.Button("Make the page", variant="primary", elem_id="evidence-inspect")
            stop = gr.Button("Stop", elem_id="evidence-stop")
        how = gr.HTML(elem_id="evidence-progress", container=False)
        page = gr.HTML(elem_id="evidence-page", container=False)
    clock, busy = gr.Timer(_TICK, active=False), gr.State(False)

    def show(name: str, chosen: str | None, inspected: str | None, request: gr.Request) -> list[Any]:
        who = person(request)
        try:
            drawn = desk.section(who, name)
            choices = desk.cards(who) if name == CARDS else []
            known = [key for _, key in choices]
            key = chosen if chosen in known else (known[0] if known else None)
            read = desk.card(who, key) if name == CARDS else ""
            told, made, works = desk.inspected(who, inspected) if name == INSPECTION and inspected else ("", "", False)
        except Exception as error:
            raise problem(error) from error
        first = gr.update(choices=choices, value=key) if name == CARDS else gr.skip()
        sides = [gr.update(visible=name == CARDS), gr.update(visible=name == INSPECTION)]
        return [drawn, *sides, first, read, told, made, gr.Timer(active=works), works]

    def opened(was: Any, request: gr.Request) -> list[Any]:
        name, key, inspected = was if isinstance(was, list) and len(was) == 3 else (None, None, None)
        name = name if name in SECTIONS else SECTIONS[0]
        inspected = inspected if inspected in names else (names[0] if names else None)
        return [name, inspected, *show(name, key, inspected, request)]

    def read(key: str | None, request: gr.Request) -> str:
        try:
            return desk.card(person(request), key)
        except Exception as error:
            raise problem(error) from error

    async def begin(name: str | None, request: gr.Request) -> list[Any]:
        who = person(request)
        allow(studio, who, "generate")
        await charge(studio, who, _COUNTED)
        try:
            desk.inspect(who, name)
        except Exception as error:
            raise problem(error) from error
        return watch(name, False, request)

    def watch(name: str | None, worked: bool, request: gr.Request) -> list[Any]:
        try:
            told, made, works = desk.inspected(person(request), name)
        except Exception as error:
            raise problem(error) from error
        changed = works != worked or not works
        return [told, made if changed else gr.skip(), gr.Timer(active=works), works]

    def give_up(request: gr.Request) -> None:
        desk.inspections.stop(person(request).id)

    def other(name: str | None, request: gr.Request) -> list[Any]:
        return watch(name, False, request)

    quiet: dict[str, Any] = {"show_progress": "hidden"}
    drawn = [charts, cards, inside, model, card, how, page, clock, busy]
    when_opened(opened, [state], [section, served, *drawn])
    section.input(show, [section, model, served], drawn, show_progress="minimal", show_progress_on=[charts])
    gr.on(
        [section.change, model.change, served.change],
        None,
        [section, model, served],
        state,
        js="(...values) => [values]",
        **quiet,
    )
    model.input(read, model, card, **quiet)
    served.input(other, served, [how, page, clock, busy], **quiet)
    make.click(begin, served, [how, page, clock, busy], **quiet)
    stop.click(give_up, None, None, **quiet)
    clock.tick(watch, [served, busy], [how, page, clock, busy], queue=False, **quiet)
