"""What the Train tab does, without its components: whom it lets do what, with which runs, and how far estimates are."""

from __future__ import annotations

import html
import json
import queue
import shlex
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from atonce.core.errors import InputError
from atonce.exchange.gallery import gallery_names
from atonce.studio.context import Person, Studio, allow, may
from atonce.studio.evidence_chart import nothing, table
from atonce.studio.train_estimate import StoppedError, estimate, estimate_text, opened
from atonce.studio.train_form import MODEST, Form, distils, form_of, words
from atonce.studio.train_process import AT_ONCE, Launch, Trainings, sign
from atonce.studio.train_runs import Run, Runs
from atonce.studio.train_sources import Source, source_of, sources
from atonce.training.presets import PRESETS
from atonce.training.recipe import Recipe

PRESET_WORDS = {
    "digits": "digits: iCT sized for minutes, what the demo trains",
    "ict": "ict: improved consistency training, from data alone",
    "ct": "ct: consistency training of 2023",
    "ect": "ect: easy consistency tuning, from a diffusion model",
    "cd": "cd: consistency distillation of a diffusion model",
    "progressive": "progressive: distillation by halving steps",
    "diffusion": "diffusion: the teacher, learns quickly, needs many steps",
}
CHOICES = [(PRESET_WORDS.get(name, name), name) for name in PRESETS]
SHOWN = 40  # runs in the list
NONE = ""


class Desk:
    """The work of the tab.

    Args:
        studio: Its runs, its people's folders, its models.
        at_once: How many trainings may run at the same time.
    """

    def __init__(self, studio: Studio, at_once: int = AT_ONCE) -> None:
        self.studio = studio
        self.trainings = Trainings(studio.runs, at_once)
        self.runs = Runs(self.trainings)
        self._estimating = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    # ---- what can be chosen

    def data(self, who: Person) -> list[tuple[str, str]]:
        """Labels and keys of the data that somebody may choose."""
        return [(source.label, source.key) for source in sources(who.folder, may(self.studio, who, "admin"))]

    def starts(self, who: Person) -> list[tuple[str, str]]:
        """Labels and keys of the models that a run can start from: of finished runs, and of the gallery."""
        found = [("nothing: weights drawn from the seed", NONE)]
        for run in self._some(who, SHOWN):
            if run.recipe is not None and (run.folder / "model" / "config.json").is_file():
                kind = "diffusion model" if run.recipe.pairs == "denoising" else run.recipe.method
                found.append((f"{run.name} ({kind})", f"run:{run.name}"))
        return found + [(f"{name} (comes with the package)", f"gallery:{name}") for name in gallery_names()]

    def locked(self, who: Person) -> str:
        """Why somebody may not train here, one line; empty where they may."""
        try:
            allow(self.studio, who, "admin")
        except gr.Error as refusal:
            return f"Training needs an owner: {refusal.message}."
        return ""

    def names(self, who: Person) -> list[str]:
        """Names of the runs that somebody may see, the latest first."""
        return self.runs.names(sign(who.id)) if may(self.studio, who, "admin") else []

    def run(self, who: Person, name: str | None) -> Run | None:
        """A run; ``None`` where there is none that this person may see."""
        return self.runs.get(name, sign(who.id)) if may(self.studio, who, "admin") else None

    def several(self, who: Person, names: list[str] | None) -> list[Run]:
        """Those of some runs that are there."""
        return [run for name in names or () if (run := self.run(who, name)) is not None]

    def listed(self, who: Person) -> tuple[list[Run], int]:
        """The latest runs, and how many there are besides."""
        names = self.names(who)
        return self.several(who, names[:SHOWN]), max(0, len(names) - SHOWN)

    def free_name(self, who: Person, preset: str) -> str:
        """A name for a new run that is not taken."""
        number = 1
        while (self.studio.runs / f"{preset}-{number}").exists() or self.trainings.launch(f"{preset}-{number}") is not None:
            number += 1
        return f"{preset}-{number}"

    # ---- before a start

    def asked(self, who: Person, values: dict[str, Any]) -> tuple[Form, Source]:
        """The form and the data that somebody asks for.

        Args:
            who: The person.
            values: Of the page, by name of the field; ``data``, ``place`` and ``start`` are keys and words of the lists above.

        Returns:
            Both, checked by themselves.

        Raises:
            InputError: A field cannot be used.
        """
        allow(self.studio, who, "admin")
        form = form_of({**values, "start": self._start(who, values.get("start"))})
        return form, source_of(values.get("data"), who.folder, True, str(values.get("place") or ""))

    def recipe_text(self, who: Person, values: dict[str, Any]) -> tuple[str, str]:
        """The whole recipe as JSON, and the command that trains it.

        Args:
            who: The person.
            values: As for :meth:`asked`.

        Returns:
            Both as text.

        Raises:
            InputError: Something does not fit.
        """
        form, source = self.asked(who, values)
        recipe, data, _ = opened(form, source)
        place = "DATA" if source.private else source.place
        line = words(form, data.shape[1], place, f"{self.studio.runs}/{form.name}")
        return json.dumps({"digest": recipe.digest(), **recipe.as_dict()}, indent=2), f"atonce {shlex.join(line)}"

    def estimated(self, who: Person, values: dict[str, Any]) -> Iterator[str]:
        """Measure what a training would take; one at a time, and it can be stopped.

        Args:
            who: The person.
            values: As for :meth:`asked`.

        Yields:
            HTML: how far it is, and at the end the estimate.

        Raises:
            InputError: Something does not fit, or somebody else's estimate is under way.
            AtonceError: The probe did not get through.
        """
        form, source = self.asked(who, values)
        if not self._estimating.acquire(blocking=False):
            raise InputError("another estimate is being measured, and both would be wrong: try again in half a minute")
        stop, told = threading.Event(), queue.Queue[Any]()
        self._stops[who.id] = stop

        def work() -> None:
            try:
                told.put(estimate(form, source, stop, lambda share, text: told.put((share, text))))
            except BaseException as error:
                told.put(error)

        thread = threading.Thread(target=work, name="estimate", daemon=True)
        try:
            thread.start()
            while True:
                try:
                    news = told.get(timeout=600)
                except queue.Empty:
                    raise InputError("the estimate has said nothing for ten minutes and was given up") from None
                if isinstance(news, tuple):
                    yield _bar(*news)
                elif isinstance(news, StoppedError):
                    yield nothing("The estimate was stopped.")
                    return
                elif isinstance(news, BaseException):
                    raise news
                else:
                    rows = [list(line) for line in estimate_text(news)]
                    yield f"<h4>Estimate for {html.escape(form.name)}</h4>" + table(["what", "estimate"], rows, "Estimate")
                    return
        finally:
            stop.set()
            self._stops.pop(who.id, None)
            self._estimating.release()

    def stop_estimate(self, who: Person) -> None:
        """End the estimate that somebody has under way."""
        if (stop := self._stops.get(who.id)) is not None:
            stop.set()

    # ---- runs

    def start(self, who: Person, values: dict[str, Any]) -> Launch:
        """Start a training, after everything that can be refused was looked at.

        Args:
            who: The person.
            values: As for :meth:`asked`.

        Returns:
            Its note.

        Raises:
            InputError: Something does not fit, the name is taken, or too many trainings run.
            StorageError: The folder of the runs cannot be written.
        """
        form, source = self.asked(who, values)
        if (self.studio.runs / form.name).exists():
            raise InputError(f"there is a run called {form.name!r} already, and it is not overwritten: choose another name")
        _, data, _ = opened(form, source)
        out = self.studio.runs.resolve() / form.name
        line = [*words(form, data.shape[1], source.place, str(out)), "--checkpoint-seconds", "60"]
        return self.trainings.start(form.name, line, owner=sign(who.id), private=source.private, data=source.label)

    def stop(self, who: Person, name: str | None, sure: bool = False) -> Launch:
        """Ask a training to save and end; see :meth:`Trainings.stop`."""
        allow(self.studio, who, "admin")
        return self.trainings.stop(self._chosen(name), sign(who.id), sure)

    def resume(self, who: Person, name: str | None, sure: bool = False) -> Launch:
        """Continue a training by the command that began it; see :meth:`Trainings.resume`.

        Args:
            who: The person.
            name: Of the run.
            sure: Whether a run of somebody else is meant.

        Returns:
            Its note.

        Raises:
            InputError: It is finished, or cannot be continued here.
        """
        allow(self.studio, who, "admin")
        run = self.run(who, self._chosen(name))
        if run is not None and run.state == "finished":
            raise InputError(f"{run.name} is finished: there is nothing to continue")
        return self.trainings.resume(self._chosen(name), sign(who.id), sure)

    def serve(self, who: Person, name: str | None, model: str | None) -> str:
        """Let a run's model answer for a served name; the version before is kept ready.

        Args:
            who: The person.
            name: Of the run.
            model: The served name.

        Returns:
            What was done.

        Raises:
            InputError: The run has no model yet.
            AtonceError: The model cannot be opened, or makes other images than those of that name.
        """
        allow(self.studio, who, "admin")
        run = self.run(who, self._chosen(name))
        if run is None or not (run.folder / "model" / "config.json").is_file():
            raise InputError(f"the run {str(name)[:80]!r} has no finished model yet: wait for its end")
        host = self.studio.service.hosts.host(model or "")
        version = host.load(str(run.folder.resolve()), canary=0.0)
        return f"{run.name} answers as {model} now, for everybody (version {version})."

    def unserve(self, who: Person, model: str | None) -> str:
        """Go back to the version that answered before; see :meth:`serve`."""
        allow(self.studio, who, "admin")
        self.studio.service.hosts.host(model or "").roll_back()
        return f"{model} is again what it was before."

    # ---- inside

    def _chosen(self, name: str | None) -> str:
        if not name:
            raise InputError("no run is chosen: choose one from the list")
        return name

    def _some(self, who: Person, most: int) -> list[Run]:
        return self.several(who, self.names(who)[:most])

    def _start(self, who: Person, key: Any) -> str | None:
        """What ``atonce train`` takes for a model of :meth:`starts`."""
        kind, _, name = str(key or "").partition(":")
        if not kind:
            return None
        if kind == "gallery" and name in gallery_names():
            return name
        run = self.run(who, name) if kind == "run" else None
        if run is None or not (run.folder / "model" / "config.json").is_file():
            raise InputError(f"the model {name[:80]!r} is not there: choose another one to start from")
        return str(run.folder.resolve())


def usual(preset: str) -> tuple[int, int]:
    """Images and batch that are offered with a preset."""
    if preset != "digits":
        return MODEST["images"], MODEST["batch"]
    recipe: Recipe = PRESETS[preset]()
    return recipe.images, recipe.batch


def start_words(preset: str) -> str:
    """What a model to start from is for, with a preset."""
    if distils(preset):
        return "the diffusion model that is distilled; this preset needs one"
    return "whose weights the run begins with"


def _bar(share: float, text: str) -> str:
    return (
        f'<div class="ev-status"><span role="status">{html.escape(text)}</span><div class="at-bar" role="progressbar" '
        f'aria-label="estimate" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share * 100:.0f}">'
        f'<i style="width:{share * 100:.0f}%"></i></div></div>'
    )
