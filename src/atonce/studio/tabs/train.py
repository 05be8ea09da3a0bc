"""The Train tab: start a recipe, watch it, stop and continue it, see runs side by side."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from atonce.networks.presets import NAMES as NETWORKS
from atonce.studio.context import Person, Studio, person, problem
from atonce.studio.evidence_chart import nothing
from atonce.studio.state import kept, when_opened
from atonce.studio.train_desk import CHOICES, NONE, SHOWN, Desk, start_words, usual
from atonce.studio.train_form import OWN
from atonce.studio.train_sources import DISK
from atonce.studio.train_views import compare_html, list_html, run_html, signature
from atonce.training.presets import PRESETS

FIELDS = (
    "preset",
    "name",
    "data",
    "place",
    "images",
    "batch",
    "lr",
    "network",
    "size",
    "seed",
    "conditional",
    "start",
    "small",
)
_TICK = 2.0  # seconds between two looks at a run that is at work
_SMALL, _PUBLISHED = "for small runs, as we measured them", "as published"


def build(studio: Studio) -> None:
    """Make the tab inside the current Blocks.

    Args:
        studio: What it works with.
    """
    desk = Desk(studio)
    form = kept("train-form", None)
    watched = kept("train-run", None)
    gr.HTML(
        '<p class="at-lead">Train a model on data that are here, on your own (pack them in the Data tab), or on a folder of '
        "this machine. A training is a process of its own: it goes on when this page is closed, and when the server is "
        f"restarted. At most {desk.trainings.at_once} run at once.</p>"
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            fields = _fields()
            with gr.Row():
                start = gr.Button("Start training", variant="primary", elem_id="train-start")
                probe = gr.Button("Estimate time and memory", elem_id="train-estimate")
                halt = gr.Button("Stop the estimate", elem_id="train-estimate-stop", visible=False)
                show = gr.Button("Show the whole recipe", elem_id="train-recipe")
            before = gr.HTML(elem_id="train-before", container=False)
        with gr.Column(scale=3, min_width=300):
            run = gr.Dropdown([], label="Run", elem_id="train-run", info="the latest first", filterable=True)
            with gr.Row():
                stop = gr.Button("Stop (it saves)", elem_id="train-stop")
                resume = gr.Button("Continue", elem_id="train-continue")
                look_again = gr.Button("Look again", elem_id="train-look")
            others = gr.Checkbox(False, label="Also stop or continue runs that another browser started", elem_id="train-others")
            shown = gr.HTML(run_html(None), elem_id="train-shown", container=False)
            with gr.Accordion("Let this run's model answer in the other tabs", open=False, elem_id="train-serving"):
                gr.HTML(
                    '<p class="ev-say">Its finished model takes the place of a served model of the same image size and '
                    "classes, for everybody who uses this server. The version before stays ready.</p>"
                )
                served = gr.Dropdown(studio.service.hosts.names(), label="In place of", elem_id="train-served")
                with gr.Row():
                    put = gr.Button("Serve it", elem_id="train-serve")
                    back = gr.Button("Go back to the version before", elem_id="train-unserve")
                answer = gr.HTML(elem_id="train-answer", container=False)
    with gr.Accordion("Runs side by side", open=False, elem_id="train-compare"):
        several = gr.CheckboxGroup([], label="Runs to compare", elem_id="train-several")
        compared = gr.HTML(compare_html([]), elem_id="train-compared", container=False)
    with gr.Accordion("All runs", open=False, elem_id="train-all"):
        listed = gr.HTML(elem_id="train-list", container=False)
    clock, seen = gr.Timer(_TICK, active=False), gr.State("")
    inputs = [fields[name] for name in FIELDS]

    def values(*given: Any) -> dict[str, Any]:
        return {**dict(zip(FIELDS, given, strict=True)), "small": given[FIELDS.index("small")] != _PUBLISHED}

    def look(name: str | None, before: str, request: gr.Request) -> tuple[Any, Any, Any, Any]:
        who = person(request)
        found = desk.run(who, name)
        now = signature(found)
        if now == before:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        page = nothing(why) if (why := desk.locked(who)) else run_html(found)
        return page, now, gr.Timer(active=found is not None and found.alive), list_html(*desk.listed(who))

    def opened(was: Any, name: str | None, request: gr.Request) -> list[Any]:
        who = person(request)
        names, choices = desk.names(who), {"data": desk.data(who), "start": desk.starts(who)}
        chosen = name if name in names else (names[0] if names else None)
        filled = _restored(was, choices)
        filled.setdefault("name", desk.free_name(who, filled.get("preset", "digits")))
        updates = {field: gr.update(value=filled[field]) if field in filled else gr.skip() for field in FIELDS}
        for field, some in choices.items():
            updates[field] = gr.update(choices=some, value=filled.get(field, "digits" if field == "data" else NONE))
        updates["place"] = gr.update(value=filled.get("place", ""), visible=filled.get("data") == DISK)
        runs = [gr.update(choices=names, value=chosen), gr.update(choices=names[:SHOWN])]
        return [*updates.values(), *runs, *look(chosen, "", request)]

    def suggest(chosen: str, name: str, request: gr.Request) -> list[Any]:
        images, batch = usual(chosen)
        own = re.fullmatch(rf"({'|'.join(PRESETS)})-\d+", name or "") or not name
        named = desk.free_name(person(request), chosen) if own else gr.skip()
        return [images, batch, gr.update(info=start_words(chosen)), named]

    def begin(request: gr.Request, *given: Any) -> list[Any]:
        who = person(request)
        try:
            name = desk.start(who, values(*given)).name
        except Exception as error:
            raise problem(error) from error
        names = desk.names(who)
        chosen = gr.update(choices=names, value=name)
        return [chosen, gr.update(choices=names[:SHOWN]), *look(name, "", request), desk.free_name(who, str(given[0])), ""]

    def recipe(request: gr.Request, *given: Any) -> str:
        try:
            text, line = desk.recipe_text(person(request), values(*given))
        except Exception as error:
            raise problem(error) from error
        return f"<h4>The whole recipe</h4>{_code(text, 'Recipe as JSON')}<h4>The command</h4>{_code(line, 'Command')}"

    def measured(request: gr.Request, *given: Any) -> Iterator[tuple[Any, Any, Any]]:
        try:
            for page in desk.estimated(person(request), values(*given)):
                yield page, gr.update(visible=True), gr.update(interactive=False)
        except Exception as error:
            yield "", gr.update(visible=False), gr.update(interactive=True)
            raise problem(error) from error
        yield gr.skip(), gr.update(visible=False), gr.update(interactive=True)

    def give_up(request: gr.Request) -> None:
        desk.stop_estimate(person(request))

    def change(action: Callable[[Person, str | None, bool], Any]) -> Callable[..., Any]:
        def act(name: str | None, sure: bool, request: gr.Request) -> tuple[Any, Any, Any, Any]:
            try:
                action(person(request), name, sure)
            except Exception as error:
                raise problem(error) from error
            return look(name, "", request)

        return act

    def again(name: str | None, request: gr.Request) -> list[Any]:
        names = desk.names(person(request))
        chosen = name if name in names else (names[0] if names else None)
        return [gr.update(choices=names, value=chosen), gr.update(choices=names[:SHOWN]), *look(chosen, "", request)]

    def fresh(name: str | None, request: gr.Request) -> tuple[Any, Any, Any, Any]:
        return look(name, "", request)

    def compare(names: list[str] | None, request: gr.Request) -> str:
        return compare_html(desk.several(person(request), names))

    def serving(action: Callable[[Person, str | None, str | None], str]) -> Callable[..., Any]:
        def act(name: str | None, model: str | None, request: gr.Request) -> str:
            try:
                return f'<p class="ev-say" role="status">{html.escape(action(person(request), name, model))}</p>'
            except Exception as error:
                raise problem(error) from error

        return act

    quiet: dict[str, Any] = {"show_progress": "hidden"}
    view = [shown, seen, clock, listed]
    when_opened(opened, [form, watched], [*inputs, run, several, *view])
    gr.on([field.change for field in inputs], None, inputs, form, js="(...values) => [values]", **quiet)
    run.change(None, run, watched, js="(name) => [name]", **quiet)
    preset, data = fields["preset"], fields["data"]
    preset.input(suggest, [preset, fields["name"]], [fields[name] for name in ("images", "batch", "start", "name")], **quiet)
    data.change(lambda key: gr.update(visible=key == DISK), data, fields["place"], **quiet)
    start.click(begin, inputs, [run, several, *view, fields["name"], before], **quiet)
    probe.click(measured, inputs, [before, halt, probe], concurrency_limit=None, **quiet)
    halt.click(give_up, None, None, **quiet)
    show.click(recipe, inputs, before, **quiet)
    run.input(fresh, run, view, **quiet)
    look_again.click(again, run, [run, several, *view], **quiet).then(compare, several, compared, **quiet)
    stop.click(change(desk.stop), [run, others], view, **quiet)
    resume.click(change(desk.resume), [run, others], view, **quiet)
    several.change(compare, several, compared, **quiet)
    clock.tick(look, [run, seen], view, queue=False, **quiet)
    put.click(serving(desk.serve), [run, served], answer)
    back.click(serving(lambda who, _, model: desk.unserve(who, model)), [run, served], answer)


def _fields() -> dict[str, Any]:
    """The components of the form, by name of the field."""
    found: dict[str, Any] = {}
    found["preset"] = gr.Dropdown(CHOICES, value="digits", label="Preset", elem_id="train-preset")
    found["name"] = gr.Textbox(label="Name of the run", elem_id="train-name", max_length=64)
    found["data"] = gr.Dropdown([("digits", "digits")], value="digits", label="Data", elem_id="train-data")
    found["place"] = gr.Textbox(
        label="Folder, zip or file of images on the machine of this server", elem_id="train-place", visible=False
    )
    images, batch = usual("digits")
    with gr.Row():
        found["images"] = gr.Number(images, label="Images seen", precision=0, elem_id="train-images", min_width=140)
        found["batch"] = gr.Number(batch, label="Batch", precision=0, elem_id="train-batch", min_width=140)
    with gr.Row():
        found["lr"] = gr.Number(
            0, label="Learning rate", info="0: the preset's", elem_id="train-lr", step=0.0001, min_width=140
        )
        found["seed"] = gr.Number(
            0, label="Seed", info="of weights and noise", precision=0, elem_id="train-seed", min_width=140
        )
    with gr.Row():
        found["network"] = gr.Dropdown(
            [OWN, *NETWORKS], value=OWN, label="Network", info="its size", elem_id="train-network", min_width=140
        )
        found["size"] = gr.Number(
            0, label="Side in pixels", info="0: as the images are", precision=0, elem_id="train-size", min_width=140
        )
    found["conditional"] = gr.Checkbox(False, label="Train with the data's labels", elem_id="train-labels")
    found["start"] = gr.Dropdown(
        [("nothing: weights drawn from the seed", NONE)],
        value=NONE,
        label="Start from",
        info=start_words("digits"),
        elem_id="train-from",
    )
    found["small"] = gr.Radio([_SMALL, _PUBLISHED], value=_SMALL, label="Further settings", elem_id="train-small")
    return found


def _restored(was: Any, choices: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """What a browser has kept of the form, as far as it can still be shown."""
    if not isinstance(was, list) or len(was) != len(FIELDS):
        return {}
    known: dict[str, list[Any]] = {"preset": list(PRESETS), "network": [OWN, *NETWORKS], "small": [_SMALL, _PUBLISHED]}
    known |= {field: [key for _, key in some] for field, some in choices.items()}
    found = {}
    for field, value in zip(FIELDS, was, strict=True):
        if field in known:
            fits = value in known[field]
        elif field == "conditional":
            fits = isinstance(value, bool)
        elif field in ("name", "place"):
            fits = isinstance(value, str) and len(value) <= 1000
        else:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if fits:
            found[field] = value
    return found


def _code(text: str, label: str) -> str:
    return f'<pre class="ev-code" tabindex="0" role="region" aria-label="{label}">{html.escape(text)}</pre>'
