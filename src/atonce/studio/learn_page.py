"""The Learn tab as HTML: the picture, its controls, the steps and the quiz. assets/learn*.js brings it to life."""

from __future__ import annotations

import html
import json

from atonce.studio.learn_formula import prose
from atonce.studio.learn_net import packed, record
from atonce.studio.learn_quiz import quiz_html
from atonce.studio.learn_steps import STEPS, Step
from atonce.studio.learn_world import facts

_SIGMA = "noise ode consistency trained"
_PAIRS = "cd ct"


def page_html() -> str:
    """The whole tab.

    Returns:
        HTML that holds all its data, the weights of the trained model among them.
    """
    told = json.dumps({"world": facts(), "layers": packed(), "steps": [step.key for step in STEPS]}, separators=(",", ":"))
    steps = "".join(_step(number, step) for number, step in enumerate(STEPS))
    return (
        f'<div id="learn-root"><div id="learn-facts" hidden>{html.escape(told, quote=False)}</div>'
        f'{_nav()}<div class="learn-columns"><div class="learn-left">{_stage()}{_controls()}</div>'
        f'<div class="learn-right">{steps}{_tables()}{_made()}</div></div>'
        f"{quiz_html()}</div>"
    )


def _nav() -> str:
    buttons = "".join(
        f'<li><button type="button" data-step="{number}">{number + 1}. {html.escape(step.title)}</button></li>'
        for number, step in enumerate(STEPS)
    )
    return f'<nav aria-label="Steps" class="learn-nav"><ol>{buttons}</ol></nav>'


def _stage() -> str:
    keys = (
        ("point", "your point x"),
        ("way", "its trajectory"),
        ("origin", "origin: the exact answer"),
        ("model", "the trained model's answer"),
        ("mean", "D, the denoiser's answer"),
        ("walk", "the solver's way"),
        ("other", "the pair's second point"),
        ("data", "a data point y"),
        ("cross", "Euler's step"),
    )
    legend = "".join(f'<li data-key="{key}"><span class="learn-mark learn-{key}"></span>{name}</li>' for key, name in keys)
    layers = "".join(f'<g id="learn-{name}"></g>' for name in ("clusters", "cloud", "lines", "marks"))
    return (
        '<div class="learn-stage"><svg id="learn-svg" viewBox="-1.35 -1.35 2.7 2.7" role="group" '
        'aria-label="Picture: four clusters of data in a plane, a point and its trajectory">'
        f"{layers}"
        '<g id="learn-handle" role="slider" tabindex="0" aria-label="Point x: drag it, or move it with the arrow keys" '
        'aria-valuemin="-200" aria-valuemax="200" aria-valuenow="0" aria-valuetext="" aria-describedby="learn-summary">'
        '<circle class="learn-hit"/><circle class="learn-point"/></g></svg></div>'
        f'<ul class="learn-legend">{legend}</ul><p id="learn-summary" class="learn-summary"></p>'
    )


def _controls() -> str:
    return (
        '<div class="learn-controls">'
        + _slider("sigma", "Noise level σ", _SIGMA, 0, 1000, 1)
        + _slider("n", "Steps of the teacher n", "teacher", 1, 64, 1)
        + _slider("N", "Points of the grid N", _PAIRS, 4, 80, 1)
        + _slider("k", "Progress of training k/K", "ict", 0, 1000, 1)
        + _slider("i", "Interval n", _PAIRS + " ict", 1, 17, 1)
        + '<fieldset class="learn-solver" data-for="teacher cd"><legend>Solver</legend>'
        '<label><input type="radio" name="learn-order" value="1" id="learn-euler">Euler</label>'
        '<label><input type="radio" name="learn-order" value="2" id="learn-heun">Heun</label></fieldset>'
        '<div class="learn-buttons">'
        '<button type="button" class="at-button" id="learn-play" data-for="ode consistency">Follow the trajectory</button>'
        '<button type="button" class="at-button" id="learn-other" data-for="ct">Another data point</button>'
        '<button type="button" class="at-button" id="learn-draw" data-for="ict">Draw a pair</button>'
        '<button type="button" class="at-button" id="learn-new">Another point</button></div>'
        '<figure class="learn-ruler" data-for="cd ct ict"><figcaption id="learn-ruler-text"></figcaption>'
        '<div class="learn-plot"><svg id="learn-ruler" width="100%" height="86" role="img" aria-labelledby="learn-ruler-text">'
        "</svg></div></figure></div>"
    )


def _slider(key: str, label: str, where: str, low: int, high: int, step: int) -> str:
    return (
        f'<div class="learn-slider" data-for="{where}"><label for="learn-{key}-slide">{label}</label>'
        f'<input type="range" id="learn-{key}-slide" min="{low}" max="{high}" step="{step}"><output id="learn-{key}-value" '
        f'for="learn-{key}-slide"></output></div>'
    )


def _step(number: int, step: Step) -> str:
    phases = "".join(
        f'<li data-phase="{i}"><h4>{html.escape(title)}</h4><div>{prose(text)}</div></li>'
        for i, (title, text) in enumerate(step.phases)
    )
    drawn = ""
    if phases:
        drawn = (
            f'<ol class="learn-phases">{phases}</ol><div class="learn-buttons">'
            '<button type="button" class="at-button" data-move="-1">Back</button>'
            '<button type="button" class="at-button learn-next" data-move="1">Next</button></div>'
        )
    return (
        f'<section class="learn-step" data-section="{number}" aria-labelledby="learn-title-{number}">'
        f'<h3 id="learn-title-{number}" tabindex="-1">{number + 1}. {html.escape(step.title)}</h3>{prose(step.text)}'
        f"{drawn}</section>"
    )


def _tables() -> str:
    numbers = _table("The numbers of the picture", (), '<tbody id="learn-numbers"></tbody>')
    errors = _table(
        "Distance from the end to the origin, for this point",
        ("n", "Euler", "calls", "Heun", "calls"),
        '<tbody id="learn-errors"></tbody>',
        "teacher",
    )
    return numbers + errors


def _made() -> str:
    made = record()
    rows = "".join(
        f'<tr><th scope="row">{html.escape(sigma)}</th>'
        + "".join(f"<td>{each[name]}</td>" for name in ("median", "rms", "rms_of_the_mean"))
        + "</tr>"
        for sigma, each in made["distance_to_exact"].items()
    )
    caption = f"Distance to the exact answer, {made['measured_on']:,} points each"
    head = ("σ", "median", "root mean square", "of the mean of all answers")
    return (
        f'{_table(caption, head, f"<tbody>{rows}</tbody>", "trained")}<p class="learn-source" data-for="trained">'
        f"Measured when it was trained: {html.escape(made['method'])}, {made['points_seen']:,} points in "
        f"{made['steps']:,} steps of {made['batch']}; by <code>{html.escape(made['made_by'])}</code>.</p>"
    )


def _table(caption: str, head: tuple[str, ...], body: str, where: str = "") -> str:
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    rows = f"<thead><tr>{names}</tr></thead>" if head else ""
    shown = f' data-for="{where}"' if where else ""
    return (
        f'<div class="at-table-wrap"{shown} tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f'<table class="at-table"><caption>{html.escape(caption)}</caption>{rows}{body}</table></div>'
    )
