"""The Edit tab: choose a picture, mark or paint, let a model fill, extend, enlarge, denoise, vary it; compare, undo."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from atonce.studio import edit_views as views
from atonce.studio.context import Person, Studio, engine_of, person, problem
from atonce.studio.edit_desk import Desk, explain
from atonce.studio.edit_wish import BETWEEN, FITS, GUESS, TASKS, WITH_SIGMA, factors, possible, whole, wish_of
from atonce.studio.state import kept, when_opened
from atonce.studio.works import StoppedError, Work

WAYS = {"A generated picture": "seed", "A kept image": "kept", "A test picture": "sample", "An upload": "upload"}
CONTROLS = (
    "model",
    "task",
    "seed",
    "steps",
    "label",
    "sigma",
    "n",
    "factor",
    "height",
    "width",
    "top",
    "left",
    "fit",
    "between",
    "seed_a",
    "seed_b",
    "iterations",
)
_TICK = 0.4

_CANVAS = '<div class="edit-canvas" hidden></div>'
_RESULT = '<div class="edit-result"><p class="at-note">Choose a picture to begin with.</p></div>'
_HISTORY = '<div class="edit-history"></div>'
_SIGMA_WORDS = {
    "local": "First noise level σ: how much changes (empty: 4 times σ of the data)",
    "stroke": "First noise level σ: lower keeps more of the strokes (empty: 10.8 times σ of the data)",
    "denoise": "Noise σ of the picture, where black to white is 2 (empty: it is estimated)",
    "variations": "First noise level σ: how much changes (empty: 2 times σ of the data)",
}


def build(studio: Studio) -> None:
    """Make the tab inside the current Blocks.

    Args:
        studio: What it works with.
    """
    desk = Desk(studio)
    names = studio.service.hosts.names()
    memory = kept("edit", None)
    own: dict[str, Any] = {"apply_default_css": False}
    gr.HTML(
        '<p class="at-lead">Change a picture with a model that was never trained for it. Every step is kept: go back, and on '
        "elsewhere, without losing anything.</p>",
        **own,
    )
    c: dict[str, Any] = {}
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            c["model"] = gr.Dropdown(names, value=names[0] if names else None, label="Model", elem_id="edit-model")
            with gr.Accordion("1. Choose a picture", open=True, elem_id="edit-choose"):
                way = gr.Radio(list(WAYS), value=next(iter(WAYS)), label="Begin with", elem_id="edit-way")
                with gr.Row() as by_seed:
                    first_seed = gr.Number(0, label="Its seed", precision=0, elem_id="edit-first-seed", min_width=110)
                    first_label = gr.Dropdown([], label="Its label", elem_id="edit-first-label", visible=False, min_width=110)
                image = gr.Dropdown([], label="Kept image", elem_id="edit-kept", visible=False)
                with gr.Row(visible=False) as by_number:
                    data = gr.Dropdown(desk.samples(), value="digits", label="Data", elem_id="edit-data", min_width=110)
                    number = gr.Number(0, label="Number", precision=0, elem_id="edit-number", min_width=110)
                upload = gr.File(
                    file_count="single", label="PNG, JPEG or WebP", elem_id="edit-upload", height=150, visible=False
                )
                use = gr.Button("Use this picture", variant="primary", elem_id="edit-use")
            with gr.Group(elem_id="edit-tasks"):
                c["task"] = gr.Radio(
                    [(title, key) for key, (title, _) in TASKS.items()],
                    value="inpaint",
                    label="2. Choose what to do",
                    elem_id="edit-task",
                )
            why = gr.HTML(elem_id="edit-why", **own)
            with gr.Row():
                c["seed"] = gr.Number(0, label="Seed", precision=0, elem_id="edit-seed", min_width=90)
                c["steps"] = gr.Number(0, label="Steps (0: usual)", precision=0, elem_id="edit-steps", min_width=90)
            c["label"] = gr.Dropdown([GUESS], value=GUESS, label="Label", elem_id="edit-label", visible=False)
            c["sigma"] = gr.Textbox(label="Noise level σ", elem_id="edit-sigma", visible=False, max_length=20)
            c["n"] = gr.Number(8, label="How many pictures", precision=0, elem_id="edit-n", visible=False)
            c["factor"] = gr.Dropdown([2], value=2, label="How many times larger", elem_id="edit-factor", visible=False)
            with gr.Column(visible=False) as canvas_size:
                with gr.Row():
                    c["height"] = gr.Number(
                        0, label="Height (0: the model's)", precision=0, elem_id="edit-height", min_width=90
                    )
                    c["width"] = gr.Number(0, label="Width (0: the model's)", precision=0, elem_id="edit-width", min_width=90)
                with gr.Row():
                    c["top"] = gr.Textbox(label="Rows above (empty: centred)", elem_id="edit-top", max_length=6, min_width=90)
                    c["left"] = gr.Textbox(label="Columns to the left", elem_id="edit-left", max_length=6, min_width=90)
            with gr.Column(visible=False) as ends:
                c["between"] = gr.Radio(list(BETWEEN), value=next(iter(BETWEEN)), label="Between", elem_id="edit-between")
                other = gr.Dropdown([], label="The other picture, from the history", elem_id="edit-other")
                with gr.Row(visible=False) as end_seeds:
                    c["seed_a"] = gr.Number(1, label="From seed", precision=0, elem_id="edit-seed-a", min_width=90)
                    c["seed_b"] = gr.Number(2, label="To seed", precision=0, elem_id="edit-seed-b", min_width=90)
                c["iterations"] = gr.Slider(
                    10, 200, 60, step=10, label="Search steps for the pictures' noise", elem_id="edit-iterations"
                )
            c["fit"] = gr.Radio(list(FITS), value=next(iter(FITS)), label="Other sizes", elem_id="edit-fit")
        with gr.Column(scale=3, min_width=300):
            canvas = gr.HTML(
                "", html_template=_CANVAS, js_on_load="atonce.editCanvas(element, props, watch)", elem_id="edit-canvas", **own
            )
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="edit-run")
                stop = gr.Button("Stop", elem_id="edit-stop", visible=False)
                another = gr.Button("Next seed", elem_id="edit-another")
            progress = gr.HTML(elem_id="edit-progress", **own)
            result = gr.HTML(
                "null",
                html_template=_RESULT,
                js_on_load="atonce.editResult(element, trigger, props, watch)",
                elem_id="edit-result",
                **own,
            )
            with gr.Row():
                undo = gr.Button("Undo", elem_id="edit-undo", interactive=False)
                redo = gr.Button("Redo", elem_id="edit-redo", interactive=False)
                clear = gr.Button("Remove all pictures", elem_id="edit-clear")
            with gr.Row(visible=False) as sure:
                clear_now = gr.Button("Yes, remove all pictures of the history", variant="stop", elem_id="edit-clear-now")
                clear_not = gr.Button("Keep them", elem_id="edit-clear-not")
            history = gr.HTML(
                "[]",
                html_template=_HISTORY,
                js_on_load="atonce.editHistory(element, trigger, props, watch)",
                elem_id="edit-history",
                **own,
            )
    clock = gr.Timer(_TICK, active=False)
    controls = [c[name] for name in CONTROLS]
    shown = [canvas, result, history, undo, redo, other]
    fields = [
        why,
        c["label"],
        c["sigma"],
        c["n"],
        c["factor"],
        canvas_size,
        ends,
        c["steps"],
        run,
        first_label,
        c["seed"],
        c["fit"],
    ]
    busy = [progress, stop, run, clock]

    def show(who: Person, model: str, task: str) -> list[Any]:
        album = desk.album(who)
        chain = album.chain()
        found = views.others(chain)
        return [
            views.canvas(album, chain, task, engine_of(studio, who, model).model),
            views.result(album, chain),
            views.history(album, chain),
            gr.update(interactive=chain.before is not None),
            gr.update(interactive=chain.after is not None),
            gr.update(choices=found, value=found[-1][1] if found else None),
        ]

    def form(who: Person, model: str, task: str, label: str | None, first: str | None, factor: Any) -> list[Any]:
        own_model = engine_of(studio, who, model).model
        refused = possible(own_model, task)
        classes = [(name, name) for name in own_model.labels or ()]
        sizes = factors(own_model)
        text = (
            f'<p class="at-warn">{html.escape(refused)}</p>'
            if refused
            else f'<p class="at-note">{html.escape(TASKS[task][1])}</p>'
        )
        known = [name for _, name in classes]
        return [
            text,
            gr.update(choices=[(GUESS, GUESS), *classes], value=label if label in known else GUESS, visible=bool(classes)),
            gr.update(visible=task in WITH_SIGMA, label=_SIGMA_WORDS.get(task, "Noise level σ")),
            gr.update(visible=task in ("variations", "interpolate")),
            gr.update(
                choices=sizes, value=factor if factor in sizes else (sizes[0] if sizes else None), visible=task == "upscale"
            ),
            gr.update(visible=task == "outpaint"),
            gr.update(visible=task == "interpolate"),
            gr.update(visible=task not in ("denoise", "interpolate")),
            gr.update(interactive=not refused),
            gr.update(
                choices=[("drawn from the seed", ""), *classes], value=first if first in known else "", visible=bool(classes)
            ),
            gr.update(visible=task not in ("denoise", "interpolate")),
            gr.update(visible=task not in ("upscale", "outpaint")),
        ]

    def changed(model: str, task: str, label: str | None, first: str | None, factor: Any, request: gr.Request) -> list[Any]:
        who = person(request)
        try:
            return [*form(who, model, task, label, first, factor), *show(who, model, task)]
        except Exception as error:
            raise problem(error) from error

    def between(chosen: str) -> list[Any]:
        seeds = BETWEEN.get(chosen) == "seeds"
        return [gr.update(visible=not seeds), gr.update(visible=seeds), gr.update(visible=not seeds)]

    def ways(chosen: str, request: gr.Request) -> list[Any]:
        key = WAYS.get(chosen, "seed")
        found = desk.kept(person(request)) if key == "kept" else []
        return [
            gr.update(visible=key == "seed"),
            gr.update(visible=key == "kept", choices=found, value=found[-1][1] if found else None),
            gr.update(visible=key == "sample"),
            gr.update(visible=key == "upload"),
        ]

    async def used(request: gr.Request, model: str, task: str, fit: str, chosen: str, *given: Any) -> list[Any]:
        who = person(request)
        start, label, image_id, source, place, path = given
        try:
            match WAYS.get(chosen):
                case "kept":
                    step = await asyncio.to_thread(desk.from_kept, who, image_id)
                case "sample":
                    step = await asyncio.to_thread(desk.from_sample, who, source, whole(place, "the number"))
                case "upload":
                    fitting: Any = FITS.get(fit, "crop")
                    step = await asyncio.to_thread(desk.from_upload, who, path, model, fitting)
                case _:
                    step = await desk.from_seed(who, model, whole(start, "its seed"), label or None, 1)
        except Exception as error:
            raise problem(error) from error
        return [_said(f"Begun with {step.title}."), None, *show(who, model, task)]

    async def made(request: gr.Request, painted: str, other_id: str | None, *values: Any) -> AsyncIterator[list[Any]]:
        who = person(request)
        try:
            wish = wish_of(dict(zip(CONTROLS, values, strict=True)))
            mask, drawing = views.painted(painted)
            work = await desk.begin(who, wish, mask, drawing, other_id)
        except Exception as error:
            raise problem(error) from error
        while work.running:
            yield [work.html(), gr.update(visible=True), gr.update(interactive=False), gr.skip(), *[gr.skip()] * len(shown)]
            await asyncio.sleep(0.1 if work.seconds < 2 else 0.4)
        yield over(who, work, wish.model, wish.task)

    def over(who: Person, work: Work, model: str, task: str) -> list[Any]:
        """What is shown when an edit has ended."""
        idle = [gr.update(visible=False), gr.update(interactive=True), gr.Timer(active=False)]
        if isinstance(work.error, StoppedError):
            return [_said("Stopped; nothing was changed."), *idle, *[gr.skip()] * len(shown)]
        if work.error is not None:
            return [_said(str(problem(explain(work.error)).message), "at-warn"), *idle, *[gr.skip()] * len(shown)]
        step, here = work.result
        line = (
            f"{step.title}: {work.line()}." if here else f"{step.title} is in the history; you had gone on elsewhere meanwhile."
        )
        return [_said(line, "at-good"), *idle, *show(who, model, task)]

    def look(model: str, task: str, request: gr.Request) -> list[Any]:
        """After a reload: how far an edit is that had been begun before."""
        who = person(request)
        work = desk.work(who)
        if work is None:
            return [
                "",
                gr.update(visible=False),
                gr.update(interactive=True),
                gr.Timer(active=False),
                *[gr.skip()] * len(shown),
            ]
        if work.running:
            return [work.html(), gr.update(visible=True), gr.update(interactive=False), gr.skip(), *[gr.skip()] * len(shown)]
        return over(who, work, model, task)

    def moved(action: str) -> Any:
        def act(model: str, task: str, request: gr.Request) -> list[Any]:
            who = person(request)
            try:
                getattr(desk.album(who), action)()
                return show(who, model, task)
            except Exception as error:
                raise problem(error) from error

        return act

    def gone_to(model: str, task: str, request: gr.Request, event: gr.EventData) -> list[Any]:
        who = person(request)
        try:
            desk.album(who).go(str(event._data.get("id", "")))
            return show(who, model, task)
        except Exception as error:
            raise problem(error) from error

    def chose(model: str, task: str, request: gr.Request, event: gr.EventData) -> list[Any]:
        who = person(request)
        try:
            desk.album(who).choose(whole(event._data.get("number"), "the picture"))
            return show(who, model, task)
        except Exception as error:
            raise problem(error) from error

    def halt(request: gr.Request) -> str:
        return _said("Stopping ..." if desk.stop(person(request)) else "Nothing is under way.")

    def opened(was: Any, request: gr.Request) -> list[Any]:
        who = person(request)
        was = dict(zip(CONTROLS, was, strict=True)) if isinstance(was, list) and len(was) == len(CONTROLS) else {}
        model = was.get("model") if was.get("model") in names else names[0]
        task = was.get("task") if was.get("task") in TASKS else "inpaint"
        shaped = form(who, model, task, was.get("label"), None, was.get("factor"))
        plain = [gr.update(value=was[name]) if name in was else gr.skip() for name in plain_names]
        for place, name in ((2, "sigma"), (3, "n"), (7, "steps"), (10, "seed"), (11, "fit")):
            if name in was:
                shaped[place]["value"] = was[name]
        work = desk.work(who)
        running = work is not None and work.running
        return [
            gr.update(value=model),
            gr.update(value=task),
            *plain,
            *shaped,
            *show(who, model, task),
            gr.Timer(active=running),
        ]

    plain_names = ("height", "width", "top", "left", "between", "seed_a", "seed_b", "iterations")
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    context = [c["model"], c["task"]]
    when_opened(opened, [memory], [*context, *[c[name] for name in plain_names], *fields, *shown, clock])
    gr.on([each.change for each in controls], None, controls, memory, js="(...values) => values", **quiet)
    gr.on(
        [c["model"].input, c["task"].input],
        changed,
        [*context, c["label"], first_label, c["factor"]],
        [*fields, *shown],
        **quiet,
    )
    c["between"].change(between, c["between"], [other, end_seeds, c["iterations"]], **quiet)
    way.change(ways, way, [by_seed, image, by_number, upload], **quiet)
    begun = [*context, c["fit"], way, first_seed, first_label, image, data, number, upload]
    use.click(used, begun, [progress, upload, *shown], **quiet)
    run.click(made, [canvas, other, *controls], [*busy, *shown], **quiet)
    another.click(lambda seed: int(seed or 0) + 1, c["seed"], c["seed"], **quiet)
    stop.click(halt, None, progress, queue=False, **quiet)
    clock.tick(look, context, [*busy, *shown], queue=False, **quiet)
    for button, action in ((undo, "undo"), (redo, "redo"), (clear_now, "clear")):
        button.click(moved(action), context, shown, **quiet)
    clear.click(lambda: gr.update(visible=True), None, sure, **quiet)
    gr.on([clear_now.click, clear_not.click], lambda: gr.update(visible=False), None, sure, **quiet)
    history.select(gone_to, context, shown, **quiet)
    result.select(chose, context, shown, **quiet)


def _said(text: str, kind: str = "at-note") -> str:
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>'
