"""What the Evidence tab shows, without its components."""

from __future__ import annotations

import html

from atonce.core.errors import InputError
from atonce.core.progress import format_duration
from atonce.exchange.gallery import gallery_folder, gallery_names
from atonce.model_files import model_card
from atonce.studio.context import Person, Studio, engine_of, may
from atonce.studio.evidence_cards import card_html
from atonce.studio.evidence_chart import nothing
from atonce.studio.evidence_inspect import Inspections, Progress, page_of, read_page
from atonce.studio.evidence_records import Found, gather
from atonce.studio.evidence_views import ablation_html, grid_html, methods_html, places_html, steps_html
from atonce.studio.train_process import Trainings, sign
from atonce.studio.train_runs import Runs

STEPS, GRID, ABLATION, METHODS, CARDS, INSPECTION, PLACES = (
    "Quality against steps",
    "Quality against N",
    "Ablations",
    "Methods, ours and published",
    "Model cards",
    "Inside a model",
    "Where the numbers are from",
)
SECTIONS = (STEPS, GRID, ABLATION, METHODS, CARDS, INSPECTION, PLACES)
_CHARTS = {STEPS: steps_html, GRID: grid_html, ABLATION: ablation_html, METHODS: methods_html, PLACES: places_html}
_LEADS = {
    STEPS: "What further network calls bring. Only numbers that were measured alike stand in one chart.",
    GRID: "The distance in one step for one number of grid points N throughout, at the same budget of images.",
    ABLATION: "One ingredient of iCT switched at a time, all else equal. Intervals are 95 %, over seeds where there are some.",
    METHODS: "The methods at one budget each, measured here, and beside them what the papers report.",
    CARDS: "What a model is, what it learnt from, and what was measured of it.",
    INSPECTION: "What a model does: trajectories, its consistency gap, nearest training images, classes, interpolations. The "
    "page is made by the served model itself, when nobody else needs it.",
    PLACES: "Every chart of this tab is drawn from files of records. They are looked for here:",
}


class Desk:
    """The work of the tab.

    Args:
        studio: Its records, models and runs.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.inspections = Inspections()
        self._runs = Runs(Trainings(studio.runs))

    def found(self, who: Person) -> Found:
        """All records that somebody may see."""
        hosts = self.studio.service.hosts
        models = [(name, hosts.host(name).engine(who.id).model.records) for name in hosts.names()]
        return gather(self.studio.records, self.studio.runs if may(self.studio, who, "admin") else None, models)

    def section(self, who: Person, name: str) -> str:
        """A section of charts and tables as HTML."""
        if name not in SECTIONS:
            return ""
        lead = f'<p class="at-lead">{html.escape(_LEADS[name])}</p>'
        body = _CHARTS[name](self.found(who)) if name in _CHARTS else ""
        return f'<section class="ev-section" aria-label="{html.escape(name)}">{lead}{body}</section>'

    def cards(self, who: Person) -> list[tuple[str, str]]:
        """Labels and keys of the models whose card can be read."""
        names = self.studio.service.hosts.names()
        found = [(f"{name} (served)", f"served:{name}") for name in names]
        found += [(f"{name} (comes with the package)", f"gallery:{name}") for name in gallery_names() if name not in names]
        if may(self.studio, who, "admin"):
            for name in self._runs.names(sign(who.id)):
                if (self.studio.runs / name / "model" / "README.md").is_file():
                    found.append((f"{name} (a run)", f"run:{name}"))
        return found

    def card(self, who: Person, key: str | None) -> str:
        """A model card as HTML.

        Args:
            who: The person.
            key: Of :meth:`cards`.

        Returns:
            HTML without anything that the card brings beyond words.

        Raises:
            InputError: There is no such card.
        """
        if not key:
            return nothing("Choose a model to read its card.")
        if key not in [known for _, known in self.cards(who)]:
            raise InputError(f"there is no card of {key[:80]!r}: choose another model")
        kind, _, name = key.partition(":")
        if kind == "served":
            return card_html(model_card(engine_of(self.studio, who, name).model))
        folder = gallery_folder() / name if kind == "gallery" else self.studio.runs / name / "model"
        try:
            return card_html((folder / "README.md").read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise InputError(f"the card of {name} cannot be read: {error.strerror or error}") from error

    def inspect(self, who: Person, model: str | None) -> None:
        """Begin the inspection page of a served model; see :class:`Inspections`."""
        self.inspections.start(who.id, who.folder, engine_of(self.studio, who, model))

    def inspected(self, who: Person, model: str | None) -> tuple[str, str, bool]:
        """How far the page of a model is, and the page.

        Args:
            who: The person.
            model: The served name.

        Returns:
            HTML of the state, HTML of the page, and whether work is under way.
        """
        progress = self.inspections.progress(who.id)
        engine = engine_of(self.studio, who, model)
        path = page_of(who.folder, engine)
        busy = progress is not None and progress.state == "running"
        page = read_page(path)
        shown = "" if page is None else page_html(page, f"inspection-{engine.name}.html", engine.name)
        if page is None and not busy:
            shown = nothing("There is no page of this model yet. Making one takes a minute or a few.")
        return progress_html(progress), shown, busy


def progress_html(progress: Progress | None) -> str:
    """How far an inspection is."""
    if progress is None or progress.state == "done":
        return ""
    if progress.state != "running":
        kind = "ev-problem" if progress.state == "failed" else "ev-say"
        return f'<p class="{kind}" role="status">{html.escape(progress.model)}: {html.escape(progress.line)}</p>'
    share = min(1.0, progress.done / progress.total) if progress.total else 0.0
    left = f", {format_duration(progress.left)} left" if progress.left is not None else ""
    words = f"{progress.model}: {progress.line}, {progress.done:,} of {progress.total:,} images{left}"
    return (
        f'<div class="ev-status"><span>{html.escape(words)}</span><div class="at-bar" role="progressbar" '
        f'aria-label="inspection" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share * 100:.0f}">'
        f'<i style="width:{share * 100:.1f}%"></i></div></div>'
    )


def page_html(page: str, file: str, name: str) -> str:
    """A page in a frame without scripts and without an origin, and a button that saves it."""
    return (
        f'<p><button type="button" class="at-button ev-save" data-name="{html.escape(file, quote=True)}">Save it</button></p>'
        f'<iframe class="ev-page" sandbox="" title="Inspection of {html.escape(name, quote=True)}" '
        f'srcdoc="{html.escape(page, quote=True)}"></iframe>'
    )
