"""The tab Generate: one image that follows the controls, a wall of its neighbours, and what one likes, kept."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from atonce.core.errors import InputError
from atonce.studio import generate_kept as kept
from atonce.studio import generate_work as work
from atonce.studio.context import Person, Studio, allow, engine_of, person, problem
from atonce.studio.generate_work import DRAWN, SEEDS, Piece, Wish
from atonce.studio.state import kept as remembered
from atonce.studio.state import when_opened

PICTURE = """<figure class="generate-figure"><div class="generate-frame"><img alt="" class="at-crisp" hidden></div>
<p data-wrong role="alert"></p><figcaption></figcaption>
<p class="generate-files"><a class="at-button" data-file="png" download>Download PNG</a>
<a class="at-button" data-file="json" download>Download record</a></p></figure>"""
SIGMAS = """<fieldset class="generate-sigmas"><legend>Noise levels σ</legend><div data-rows></div>
<p class="at-note" data-note></p></fieldset>"""
WALL = '<div class="generate-wall" role="group" aria-label="Variations"></div>'
KEPT = '<div class="generate-kept"><p class="at-note" data-empty>Nothing kept yet.</p><ul aria-label="Kept images"></ul></div>'


def build(studio: Studio) -> None:
    """Make the tab.

    Args:
        studio: The studio.
    """
    names = studio.service.hosts.names()
    gr.HTML(
        '<p class="at-lead">Move a control and the image follows. The same settings always give the same image.</p>',
        elem_id="generate-lead",
    )
    memory = remembered("generate", {})
    with gr.Row(elem_id="generate-row"):
        with gr.Column(scale=5, min_width=320, elem_id="generate-controls"):
            model = gr.Dropdown(names, value=names[0] if names else None, label="Model", elem_id="generate-model")
            label = gr.Dropdown([DRAWN], value=DRAWN, label="Label", elem_id="generate-label", visible=False)
            seed = gr.Slider(0, SEEDS - 1, 0, step=1, label="Seed", elem_id="generate-seed", buttons=[])
            steps = gr.Slider(1, work.MOST_STEPS, 1, step=1, label="Steps", elem_id="generate-steps", buttons=[])
            sigmas = gr.HTML(
                "", html_template=SIGMAS, js_on_load="atonce.generateSigmas(element, trigger, props, watch)",
                apply_default_css=False, elem_id="generate-sigmas",
            )  # fmt: skip
            guidance = gr.Slider(1, 8, 1, step=0.1, label="Guidance", elem_id="generate-guidance", visible=False, buttons=[])
        with gr.Column(scale=6, min_width=320, elem_id="generate-result"):
            picture = gr.HTML(
                "", html_template=PICTURE, js_on_load="atonce.generatePicture(element, props, watch)",
                apply_default_css=False, elem_id="generate-picture",
            )  # fmt: skip
            with gr.Row(elem_id="generate-actions"):
                keep = gr.Button("Keep", variant="primary", elem_id="generate-keep")
                dice = gr.Button("Random seed", elem_id="generate-dice")
    gr.HTML("<h2>Variations</h2>", elem_id="generate-wall-title")
    with gr.Row(elem_id="generate-wall-row"):
        count = gr.Dropdown(list(work.WALLS), value=work.WALLS[1], label="How many", elem_id="generate-count", scale=1)
        fill = gr.Button("Show variations", elem_id="generate-fill", scale=1)
    wall = gr.HTML(
        "", html_template=WALL, js_on_load="atonce.generateWall(element, trigger, props, watch)",
        apply_default_css=False, elem_id="generate-wall",
    )  # fmt: skip
    gr.HTML("<h2>Kept</h2>", elem_id="generate-kept-title")
    strip = gr.HTML(
        "", html_template=KEPT, js_on_load="atonce.generateKept(element, trigger, props, watch)",
        apply_default_css=False, elem_id="generate-kept",
    )  # fmt: skip
    current = gr.State(None)

    controls = [model, seed, label, steps, sigmas, guidance]
    shown = [picture, current, memory]
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last"}

    # What follows a slider goes past Gradio's queue, where an error would be no answer: the picture itself says what is wrong.

    async def live(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        who = person(request)
        try:
            return await _show(studio, who, _wish(values))
        except gr.Error as wrong:
            return _said(wrong), gr.skip(), gr.skip()

    async def stepped(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        who = person(request)
        try:
            wish = _wish((*values[:4], "", values[5]))  # levels of another number of steps mean nothing here
            return (*await _show(studio, who, wish), _levels(studio, who, wish))
        except gr.Error as wrong:
            return _said(wrong), gr.skip(), gr.skip(), gr.skip()

    async def changed(request: gr.Request, name: str, number: float, value: str, _steps: float, _s: str, scale: float) -> Any:
        who = person(request)
        try:
            usual = work.usual_steps(engine_of(studio, who, name).model)
            return await _restored(studio, who, _wish((name, number, value, usual, "", scale)))
        except Exception as error:
            return (*[gr.skip()] * 6, _said(problem(error)), gr.skip(), gr.skip())

    async def rolled(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        drawn = secrets.randbelow(SEEDS)
        return (*await live(request, values[0], drawn, *values[2:]), drawn)

    async def walled(request: gr.Request, n: Any, *values: Any) -> str:
        who = person(request)
        try:
            allow(studio, who, "generate")
            if n not in work.WALLS:
                raise gr.Error(f"{n} images are asked for, a wall has {', '.join(map(str, work.WALLS))}", print_exception=False)
            return _wall(await work.make(studio, who, _wish(values), n))
        except Exception as error:
            raise problem(error) from error

    async def picked(request: gr.Request, event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        try:
            number = int(event._data["seed"]) % SEEDS
        except (KeyError, TypeError, ValueError) as error:
            raise gr.Error("this variation is not there any more: show them again", print_exception=False) from error
        return (*await live(request, values[0], number, *values[2:]), number)

    def keeps(request: gr.Request, piece: Piece | None) -> str:
        who = person(request)
        try:
            if piece is None:
                raise gr.Error("there is no image to keep yet: move a control first", print_exception=False)
            kept.keep(who.folder, piece)
            return kept.strip(who.folder)
        except Exception as error:
            raise problem(error) from error

    def drops(request: gr.Request, event: gr.EventData) -> str:
        who = person(request)
        try:
            kept.drop(who.folder, str(event._data.get("id", "")))
            return kept.strip(who.folder)
        except Exception as error:
            raise problem(error) from error

    async def recalled(request: gr.Request, event: gr.EventData) -> Any:
        """A kept image's settings go back to the controls."""
        who = person(request)
        record = await asyncio.to_thread(_record, who.folder, str(event._data.get("id", "")))
        try:
            own = engine_of(studio, who, record["model"]).model
            wish = work.wish_again(record, own)
        except Exception as error:
            raise problem(error) from error
        return await _restored(studio, who, wish)

    async def opened(request: gr.Request, values: Any) -> tuple[Any, ...]:
        who = person(request)
        wish = _remembered(studio, values)
        try:
            restored = await _restored(studio, who, wish)
        except gr.Error:
            restored = await _restored(studio, who, Wish(names[0]))  # what was remembered does not fit any more
        return (*restored, await asyncio.to_thread(kept.strip, who.folder))

    everything = [model, seed, label, steps, sigmas, guidance, *shown]
    gr.on([seed.input, label.input, guidance.input, sigmas.input], live, controls, shown, **quick)
    gr.on([steps.input, sigmas.clear], stepped, controls, [*shown, sigmas], **quick)
    model.input(changed, controls, everything, **quick)
    dice.click(rolled, controls, [*shown, seed], **quick)
    fill.click(walled, [count, *controls], wall, show_progress="hidden")
    wall.select(picked, controls, [*shown, seed], show_progress="hidden")
    keep.click(keeps, current, strip, show_progress="hidden")
    strip.delete(drops, None, strip, show_progress="hidden")
    strip.select(recalled, None, everything, show_progress="hidden")
    when_opened(opened, [memory], [*everything, strip])


def _said(wrong: gr.Error) -> str:
    return json.dumps({"error": wrong.message})


def _wish(values: Sequence[Any]) -> Wish:
    name, number, label, steps, levels, scale = values
    try:
        told = json.loads(levels) if levels else {}
        own = [float(level) for level in told["sigmas"]] if told.get("own") else None
        return work.wish_of(str(name), number, label, steps, own, scale)
    except (TypeError, KeyError) as error:
        raise problem(work.unreadable("the noise levels")) from error
    except ValueError as error:
        raise problem(error if isinstance(error, InputError) else work.unreadable("the noise levels")) from error


async def _show(studio: Studio, who: Person, wish: Wish) -> tuple[str, Piece, dict[str, Any]]:
    try:
        allow(studio, who, "generate")
        (piece,) = await work.make(studio, who, wish)
    except Exception as error:
        raise problem(error) from error
    record = piece.record
    facts = {
        "src": piece.address,
        "title": piece.title,
        "record": record,
        "width": piece.size[0],
        "height": piece.size[1],
        "file": f"{record['model']}-seed{record['seed']}",
    }
    return json.dumps(facts), piece, work.memory_of(wish)


async def _restored(studio: Studio, who: Person, wish: Wish) -> tuple[Any, ...]:
    """All controls as a wish has them, and its image."""
    try:
        own = engine_of(studio, who, wish.model).model
    except Exception as error:
        raise problem(error) from error
    labels = own.labels
    guided, (low, high) = work.knows_guidance(own), work.scales(own)
    wish = work.fitted(wish, own)
    shown = await _show(studio, who, wish)
    classes = [("drawn from the seed", DRAWN), *((name, name) for name in labels or ())]
    return (
        gr.update(value=wish.model),
        gr.update(value=wish.seed),
        gr.update(choices=classes, value=wish.label or DRAWN, visible=labels is not None),
        gr.update(value=wish.steps, maximum=work.most_steps(own)),
        _levels(studio, who, wish),
        gr.update(visible=guided, minimum=low, maximum=high, value=wish.guidance if guided else low),
        *shown,
    )


def _levels(studio: Studio, who: Person, wish: Wish) -> str:
    own = engine_of(studio, who, wish.model).model
    found = work.resolved(own, wish.steps, wish.sigmas)
    return json.dumps({"sigmas": found, "own": wish.sigmas is not None, "low": own.sigma_min, "high": own.sigma_max})


def _wall(pieces: Sequence[Piece]) -> str:
    return json.dumps([{"src": each.address, "seed": each.record["seed"], "title": each.title} for each in pieces])


def _record(folder: Path, name: str) -> dict[str, Any]:
    for each in kept.listed(folder):
        if each.id == name:
            return each.record
    raise gr.Error("this image is not kept any more: load the page again", print_exception=False)


def _remembered(studio: Studio, values: Any) -> Wish:
    """What this browser remembers, as far as it still makes sense."""
    names = studio.service.hosts.names()
    if not isinstance(values, dict) or values.get("model") not in names:
        return Wish(names[0])
    try:
        return work.from_memory(values)
    except (TypeError, ValueError, KeyError):
        return Wish(values["model"])
