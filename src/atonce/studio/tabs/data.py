"""The Data tab: choose or upload data, see what is wrong with them, leave out what should not be there, pack the rest."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from atonce.data.near import LIMIT
from atonce.studio import data_packs, data_views
from atonce.studio.context import Studio, person, problem
from atonce.studio.data_desk import NO_TEST, OWN_TEST, Asked, Desk
from atonce.studio.data_views import packing_html, packs_html, report_html
from atonce.studio.state import kept, when_opened
from atonce.studio.train_sources import DISK
from atonce.studio.works import StoppedError, Work

FIELDS = ("data", "place", "against", "against_place", "split", "size", "channels", "near")
_TICK = 0.7
_CHANNELS = {"as they are": None, "grey": 1, "RGB": 3}
_SUFFIXES = {"zip of PNGs": ".zip", "npz array": ".npz"}
_MOST_KEPT = 2000  # names in the list of those that can be kept all the same
_FOLDER = """<div class="data-folder" data-limit="{limit}">
<button type="button" class="at-button">Choose a folder</button>
<input type="file" webkitdirectory multiple hidden aria-hidden="true" tabindex="-1">
<p class="at-note" role="status">Subfolders are classes; train and test are splits.</p></div>"""


def build(studio: Studio) -> None:
    """Make the tab inside the current Blocks.

    Args:
        studio: What it works with.
    """
    desk = Desk(studio)
    memory = kept("data", None)
    gr.HTML(
        '<p class="at-lead">See what is in a set of pictures before training on it: damage, repeats, look-alikes, pictures '
        "that are in the test data too. Then pack it without them. Originals are never changed.</p>"
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            data = gr.Dropdown([("digits", "digits")], value="digits", label="Data", elem_id="data-data")
            place = gr.Textbox(
                label="Folder, zip or file of images on the machine of this server", elem_id="data-place", visible=False
            )
            upload = gr.File(
                file_count="multiple",
                label=f"Upload a zip, or pictures (up to {desk.limits.bytes >> 20:,} MiB)",
                elem_id="data-upload",
                height=170,
            )
            gr.HTML(
                _FOLDER.format(limit=desk.limits.bytes),
                js_on_load="atonce.dataFolder(element)",
                elem_id="data-folder",
                apply_default_css=False,
            )
            remove = gr.Button("Remove this upload", elem_id="data-remove", visible=False)
            against = gr.Dropdown(
                _tests([]), value=OWN_TEST, label="Test data that must not be among these", elem_id="data-against"
            )
            against_place = gr.Textbox(
                label="Test data on the machine of this server", elem_id="data-against-place", visible=False
            )
            split = gr.Radio(["train", "test", "all"], value="train", label="Split", elem_id="data-split")
            with gr.Accordion("Further settings", open=False, elem_id="data-further"):
                near = gr.Slider(
                    0,
                    0.5,
                    LIMIT,
                    step=0.01,
                    label="Limit of look-alikes",
                    info="0 looks for none; 0.1 finds copies with little noise",
                    elem_id="data-near",
                )
                size = gr.Number(
                    label="Measure at this side, pixels",
                    info="0: as they are",
                    precision=0,
                    value=None,
                    elem_id="data-size",
                )
                channels = gr.Radio(list(_CHANNELS), value="as they are", label="Measure as", elem_id="data-channels")
            with gr.Row():
                check = gr.Button("Check", variant="primary", elem_id="data-check")
                stop = gr.Button("Stop", elem_id="data-stop", visible=False)
            progress = gr.HTML(elem_id="data-progress", apply_default_css=False)
        with gr.Column(scale=3, min_width=300):
            report = gr.HTML(report_html(None), elem_id="data-report", apply_default_css=False)
    with gr.Column(visible=False, elem_id="data-packing") as packing:
        gr.HTML("<h3>Leave out and pack</h3>", apply_default_css=False)
        drop = gr.CheckboxGroup([], label="Leave out", elem_id="data-drop")
        spare = gr.Dropdown([], multiselect=True, label="Keep these all the same", elem_id="data-keep")
        with gr.Row():
            name = gr.Textbox(label="Name of the packed file", elem_id="data-name", max_length=60)
            suffix = gr.Radio(list(_SUFFIXES), value="zip of PNGs", label="Kind", elem_id="data-kind")
        with gr.Row():
            pack_size = gr.Number(
                label="Side of the pictures, pixels",
                info="0: as they are",
                precision=0,
                value=0,
                elem_id="data-pack-size",
            )
            pack_channels = gr.Radio(list(_CHANNELS), value="as they are", label="Colours", elem_id="data-pack-channels")
        preview = gr.HTML(elem_id="data-preview", apply_default_css=False)
        pack = gr.Button("Pack", variant="primary", elem_id="data-pack")
    gr.HTML(
        "<h3>Packed files</h3><p class='at-note'>Train on them in the Train tab, or take them with you.</p>",
        elem_id="data-packs-title",
        apply_default_css=False,
    )
    listed = gr.HTML(packs_html([]), elem_id="data-packs", apply_default_css=False)
    with gr.Row(visible=False) as pack_row:
        chosen = gr.Dropdown([], label="Packed file", elem_id="data-chosen")
        forget = gr.Button("Remove this file", elem_id="data-forget")
    clock = gr.Timer(_TICK, active=False)
    form: list[Any] = [data, place, against, against_place, split, size, channels, near]
    choosing = [data, against, place, against_place, remove]
    results = [report, packing, drop, spare, name, preview]
    files = [listed, pack_row, chosen]
    state = [progress, stop, check, pack, clock]

    def choices(who: Any, key: str | None, other: str | None) -> list[Any]:
        found = desk.data(who)
        keys = [each for _, each in found]
        value = key if key in keys else (keys[0] if keys else None)
        test = other if other in (OWN_TEST, NO_TEST, *keys) else OWN_TEST
        return [
            gr.update(choices=found, value=value),
            gr.update(choices=_tests(found), value=test),
            gr.update(visible=value == DISK),
            gr.update(visible=test == DISK),
            gr.update(visible=bool(value) and str(value).startswith("upload:")),
        ]

    def shown(who: Any) -> list[Any]:
        last = desk.last(who)
        options, first = data_views.reasons(last)
        out = desk.leave_out(who, first, [])[1] if last is not None else {}
        stem = (
            "".join(c if c.isalnum() or c in "-_" else "-" for c in last.label.removesuffix(".zip"))[:40].strip("-")
            if last
            else ""
        )
        return [
            report_html(last),
            gr.update(visible=last is not None),
            gr.update(choices=options, value=first, visible=bool(options)),
            gr.update(choices=_names(last, options), value=[], visible=bool(options)),
            gr.update(value=f"{stem or 'data'}-clean" if last else ""),
            packing_html(last, out),
        ]

    def packed(who: Any, name: str | None = None) -> list[Any]:
        found = data_packs.packs(who.folder)
        names = [each.name for each in found]
        value = name if name in names else (names[-1] if names else None)
        return [packs_html(found), gr.update(visible=bool(found)), gr.update(choices=names, value=value)]

    def under_way(work: Work | None) -> list[Any]:
        running = work is not None and work.running
        idle = gr.update(interactive=not running)
        told = work.html() if work is not None and running else ""
        return [told, gr.update(visible=running), idle, idle, gr.Timer(active=running)]

    def opened(was: Any, request: gr.Request) -> list[Any]:
        who = person(request)
        was = dict(zip(FIELDS, was, strict=True)) if isinstance(was, list) and len(was) == len(FIELDS) else {}
        work = desk.works.get(who.id)
        rest = [gr.update(value=was[field]) if field in was else gr.skip() for field in ("split", "size", "channels", "near")]
        texts = [was.get("place") or "", was.get("against_place") or ""]
        picked = choices(who, was.get("data", "digits"), was.get("against"))
        for at, text in ((2, texts[0]), (3, texts[1])):
            picked[at] = gr.update(value=text, visible=picked[at]["visible"])
        return [*picked, *rest, *shown(who), *packed(who), *under_way(work)]

    def taken(paths: list[str] | None, other: str | None, request: gr.Request) -> list[Any]:
        who = person(request)
        try:
            key = desk.take(who, [str(path) for path in paths or ()])
        except Exception as error:
            raise problem(error) from error
        return [None, *choices(who, key, other), _said("Uploaded. Now check it.")]

    def removed(key: str | None, other: str | None, request: gr.Request) -> list[Any]:
        who = person(request)
        try:
            label = desk.remove(who, key)
        except Exception as error:
            raise problem(error) from error
        return [*choices(who, None, other), *shown(who), _said(f"{label} was removed from this server.")]

    def begin(request: gr.Request, *given: Any) -> list[Any]:
        who = person(request)
        try:
            values = dict(zip(FIELDS, given, strict=True))
            values["channels"] = _CHANNELS.get(values["channels"])
            values["size"] = None if values["size"] in (None, 0) else int(values["size"])
            for field in ("place", "against_place"):
                values[field] = str(values[field] or "")
            return under_way(desk.check(who, Asked(**values)))
        except Exception as error:
            raise problem(error) from error

    def begin_pack(request: gr.Request, *given: Any) -> list[Any]:
        who = person(request)
        label, kind, reasons, spared, side, colours = given
        try:
            number = None if side in (None, 0) else int(side)
            return under_way(desk.pack(who, label, _SUFFIXES[kind], reasons or [], spared or [], number, _CHANNELS[colours]))
        except Exception as error:
            raise problem(error) from error

    def look(request: gr.Request) -> list[Any]:
        """How far the work is; when it is over, what came of it."""
        who = person(request)
        work = desk.works.get(who.id)
        if work is None or work.running:
            nothing = [gr.skip()] * (len(results) + len(files))
            return [*under_way(work), *nothing]
        desk.works.forget(who.id, work)
        told = [gr.update(visible=False), gr.update(interactive=True), gr.update(interactive=True), gr.Timer(active=False)]
        skips: list[Any] = [gr.skip()] * (len(results) + len(files))
        if isinstance(work.error, StoppedError):
            return [_said(f"{work.title} was stopped; nothing was changed."), *told, *skips]
        if work.error is not None:
            error = problem(work.error if isinstance(work.error, Exception) else RuntimeError(repr(work.error)))
            return [_said(str(error.message), "at-warn"), *told, *skips]
        if isinstance(work.result, data_packs.Pack):
            line = f"{work.title} {work.line()}. Choose {work.result.name} in the Train tab."
            skips[len(results) :] = packed(who, work.result.name)
            return [_said(line, "at-good"), *told, *skips]
        skips = [*shown(who), *[gr.skip()] * len(files)]
        return [_said(f"{work.title} {work.line()}.", "at-good"), *told, *skips]

    def halt(request: gr.Request) -> str:
        stopped = desk.works.stop(person(request).id)
        return _said("Stopping ...") if stopped else _said("Nothing is under way.")

    def previewed(reasons: list[str] | None, spared: list[str] | None, request: gr.Request) -> str:
        who = person(request)
        try:
            last, out = desk.leave_out(who, reasons or [], spared or [])
        except Exception as error:
            raise problem(error) from error
        return packing_html(last, out)

    def forgotten(label: str | None, request: gr.Request) -> list[Any]:
        who = person(request)
        try:
            data_packs.remove_pack(who.folder, label)
        except Exception as error:
            raise problem(error) from error
        return [*packed(who), _said(f"{label} was removed.")]

    quiet: dict[str, Any] = {"show_progress": "hidden"}
    when_opened(opened, [memory], [*choosing, split, size, channels, near, *results, *files, *state])
    gr.on([field.change for field in form], None, form, memory, js="(...values) => values", **quiet)
    upload.upload(taken, [upload, against], [upload, *choosing, progress])
    remove.click(removed, [data, against], [*choosing, *results, progress], **quiet)
    data.change(
        lambda key: (gr.update(visible=key == DISK), gr.update(visible=str(key).startswith("upload:"))),
        data,
        [place, remove],
        **quiet,
    )
    against.change(lambda key: gr.update(visible=key == DISK), against, against_place, **quiet)
    check.click(begin, form, state, **quiet)
    pack.click(begin_pack, [name, suffix, drop, spare, pack_size, pack_channels], state, **quiet)
    stop.click(halt, None, progress, **quiet)
    gr.on([drop.input, spare.input], previewed, [drop, spare], preview, **quiet)
    clock.tick(look, None, [*state, *results, *files], queue=False, **quiet)
    forget.click(forgotten, chosen, [*files, progress], **quiet)


def _tests(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [("their own test split, if there is one", OWN_TEST), *found, ("none: do not compare", NO_TEST)]


def _names(last: Any, options: list[tuple[str, str]]) -> list[str]:
    """Names of the pictures that can be kept although a reason speaks against them."""
    if last is None:
        return []
    return list(last.found.leave_out([reason for _, reason in options if reason != "corrupt"]))[:_MOST_KEPT]


def _said(text: str, kind: str = "at-note") -> str:
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>'
