"""A plan: probes of the candidates on this machine, what each would take, and which way is advised."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.data.dataset import ImageData
from atonce.model import ConsistencyModel
from atonce.networks.presets import NAMES, named
from atonce.planning.advice import Sureness, reasons, runner_up_reason, shortfalls, sureness
from atonce.planning.assumptions import Assumption
from atonce.planning.candidates import DISTILLING, METHODS, TEACHER, recipe_of, settings_of
from atonce.planning.estimate import count_text
from atonce.planning.machine import available_memory, machine
from atonce.planning.material import Facts, check_images, copy_for_probes, random_images, stand_in
from atonce.planning.measure import Measurement, measure
from atonce.planning.predict import Prediction, images_within, predict
from atonce.planning.routes import FROM_DATA, WITH_TEACHER, Route, order, route_of
from atonce.planning.wish import BATCH, MODEST, Wish
from atonce.training.options import pick_device
from atonce.training.presets import PRESETS
from atonce.training.recipe import Recipe
from atonce.training.start import resolve, starting_weights
from atonce.training.teacher import check_teacher

Told = Callable[[float, float, str], None]
_FEW = 1000  # steps below which batches are made smaller
_BATCHES = (BATCH, BATCH // 2, BATCH // 4)  # images a step, where nobody says how many
_MARGIN = 0.9  # share of the limit that a budget is cut to


@dataclass(frozen=True)
class Plan:
    """What is advised, and all that was weighed.

    Attributes:
        data: Facts of the data.
        wish: What was wanted.
        conditional: Whether the runs learn the labels: asked for, or since the teacher knows them.
        machine: Where it was measured.
        predictions: Each preset's.
        routes: Ways to a one-step model, the advised one first.
        fits: Whether the advised one keeps within all limits.
        reasons: Why it is advised.
        runner_up: The second one and what is to be said of it; ``None`` where there is no other.
        sure: How sure it is and why.
        shortfalls: By how much it does not fit, and what would.
        assumptions: Numbers it rests on that were given or are defaults.
        created: When, UTC.
    """

    data: Facts
    wish: Wish
    conditional: bool
    machine: str
    predictions: tuple[Prediction, ...]
    routes: tuple[Route, ...]
    fits: bool
    reasons: tuple[str, ...]
    runner_up: tuple[str, str] | None
    sure: tuple[Sureness, ...]
    shortfalls: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    created: str

    @property
    def advised(self) -> Route:
        """The first route."""
        return self.routes[0]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "data": dataclasses.asdict(self.data),
            "wish": dataclasses.asdict(self.wish),
            "conditional": self.conditional,
            "machine": self.machine,
            "predictions": [each.to_json() for each in self.predictions],
            "routes": [route.to_json() for route in self.routes],
            "advised": self.advised.name,
            "fits": self.fits,
            "reasons": list(self.reasons),
            "runner_up": None if self.runner_up is None else list(self.runner_up),
            "sure": [dataclasses.asdict(each) for each in self.sure],
            "shortfalls": list(self.shortfalls),
            "assumptions": [each.to_json() for each in self.assumptions],
            "created": self.created,
        }


def plan(
    wish: Wish,
    data: ImageData | None = None,
    *,
    shape: tuple[int, int, int] | None = None,
    classes: int = 0,
    teacher: ConsistencyModel | None = None,
    methods: Sequence[str] | None = None,
    opening: float = 0.0,
    told: Told | None = None,
) -> Plan:
    """Measure what candidates take on this machine, and advise one.

    Args:
        wish: Limits and settings.
        data: The training images.
        shape: Their shape (C, H, W), where there are none yet: random ones stand in.
        classes: Their classes, with ``shape``.
        teacher: A diffusion model that can be distilled.
        methods: The presets to weigh; default: those that there is a use for.
        opening: Seconds in which the data were opened, for the start of the run.
        told: Told how much is done, of how much, and what.

    Returns:
        The plan.

    Raises:
        InputError: Data, teacher and wish do not fit together; nothing has been measured then.
        TrainingError: A probe did not get through.
    """
    work = _Work(wish, *_material(data, shape, classes), teacher, _methods(methods, teacher), opening, told)
    with contextlib.ExitStack() as held:
        work.folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="atonce-plan-")))
        work.prepare()
        work.probe(work.network)
        routes = work.routes(work.network)
        if not (routes[0].fits and routes[0].supported) and (smaller := work.smaller()):
            work.probe(smaller, [run.method for run in routes[0].runs])
            routes = order([*routes, *work.routes(smaller)])
    return work.result(routes)


class _Work:
    def __init__(
        self,
        wish: Wish,
        data: ImageData,
        random: bool,
        teacher: ConsistencyModel | None,
        methods: tuple[str, ...],
        opening: float,
        told: Told | None,
    ) -> None:
        check_images(data, wish.conditional)
        self.wish, self.data, self.random, self.teacher, self.methods = wish, data, random, teacher, methods
        self.opening, self.told = opening, told or (lambda done, total, text: None)
        self.conditional = wish.conditional or (teacher is not None and teacher.labels is not None)
        self.device = pick_device(wish.device)
        self.room = available_memory(self.device)
        self.size = data.shape[1]
        self.network = wish.network if wish.network != "auto" else usual_network(data.shape)
        self.folder = Path()
        self.found: dict[tuple[str, str], Measurement] = {}
        self.predictions: dict[tuple[str, str], Prediction] = {}
        self.facts: Facts | None = None
        for method in methods:  # what does not fit is said before anything is measured
            recipe = self.recipe(method, wish.images or MODEST, self.batch(wish.images), self.network)
            started = teacher if recipe.init is not None or recipe.teacher is not None else None
            resolved = resolve(recipe, data, started)
            if started is not None:
                check_teacher(started if recipe.teacher is not None else None, resolved, data)
                starting_weights(started, resolved)

    def batch(self, images: int | None) -> int:
        """Images a step, where nobody says: fewer where there would be few steps."""
        if self.wish.batch is not None:
            return self.wish.batch
        if images is None:
            return BATCH
        return min(images, next((size for size in _BATCHES if images // size >= _FEW), _BATCHES[-1]))

    def recipe(self, method: str, images: int, batch: int, network: str) -> Recipe:
        """A candidate; where there is a teacher, what can start from it does."""
        taught = method == "ect" and self.teacher is not None
        network = "auto" if self.teacher is not None and (taught or method in DISTILLING) else network
        settings = settings_of(method, self.size, self.wish.short)
        return recipe_of(
            method, images=images, batch=batch, network=network, settings=settings, conditional=self.conditional, taught=taught
        )

    def prepare(self) -> None:
        """Write what the probes read: a copy of the data, the teacher or what stands in for it."""
        self.facts = copy_for_probes(self.data, self.folder / "data.npz", self.random)
        if self.teacher is not None:
            self.teacher.save_pretrained(self.folder / TEACHER)

    def probe(self, network: str, methods: Sequence[str] | None = None) -> None:
        """Measure methods with a network."""
        methods = methods or self.methods
        teacher = self.folder / TEACHER
        if self.teacher is None and any(method in DISTILLING for method in methods):
            teacher = self.folder / f"{TEACHER}-{network}"
            made = self.recipe("diffusion", self.wish.images or MODEST, self.batch(self.wish.images), network)
            stand_in(made, self.data).save_pretrained(teacher)
        assert self.facts is not None
        for number, method in enumerate(methods):
            recipe = self.recipe(method, self.wish.images or MODEST, self.batch(self.wish.images), network)
            needs = recipe.teacher is not None or recipe.init is not None

            def told(share: float, text: str, number: int = number, method: str = method) -> None:
                self.told(number + 0.9 * share, len(methods), f"{method}, {network}: {text}")

            self.told(number, len(methods), f"{method}, {network}")
            self.found[method, network] = measure(
                recipe,
                self.folder / "data.npz",
                labels=self.facts.labels,
                batch=recipe.batch,
                teacher=teacher if needs else None,
                seconds=self.wish.seconds / len(self.methods),
                device=str(self.device),
                precision=self.wish.precision,
                told=told,
            )
        self.told(len(methods), len(methods), "done")

    def routes(self, network: str) -> list[Route]:
        """The ways that the measured methods allow, the best first; predictions of the rest besides."""
        there = [method for method in self.methods if (method, network) in self.found]
        ways = [way for way in (WITH_TEACHER if self.teacher is not None else FROM_DATA) if all(m in there for m in way)]
        routes = []
        for way in ways:
            found = [self.prediction(method, network, len(way)) for method in way]
            runs = [run for run in found if run is not None]
            if len(runs) == len(way):
                routes.append(route_of(runs, self.size, self.wish.limit, self.room))
                self.predictions = {(run.method, network): run for run in runs} | self.predictions
        for method in there:
            if (method, network) not in self.predictions and (run := self.prediction(method, network, 1)):
                self.predictions[method, network] = run
        if not routes and self.predictions:
            ends = [run for (_, net), run in self.predictions.items() if net == network]
            routes = [route_of([run], self.size, self.wish.limit, self.room) for run in ends]
        if not routes:
            raise InputError(
                f"nothing fits: within {self.wish.limit or 0:.0f} s not even the start of a training is done; give more time"
            )
        return order(routes)

    def prediction(self, method: str, network: str, runs: int) -> Prediction | None:
        """What a method takes: with the budget that was given, or the one that its share of the limit allows."""
        found, limit, images = self.found[method, network], self.wish.limit, self.wish.images
        batch = self.batch(images)
        if images is None and limit is not None:
            most = 409_600_000 if method in DISTILLING else PRESETS[method]().images  # those of the papers: more is not advised
            for batch in [self.wish.batch] if self.wish.batch else _BATCHES:  # smaller where there would be few steps
                draft = self.recipe(method, MODEST, batch, network)
                images = _rounded(min(most, images_within(_MARGIN * limit / runs, draft, found, self.opening)))
                if images // batch >= _FEW:
                    break
        images = MODEST if images is None else images
        try:
            recipe = self.recipe(method, images, batch, network) if images >= batch else None
        except InputError:  # too short for its curriculum
            recipe = None
        if recipe is None:
            return None
        if self.teacher is not None and (recipe.init is not None or recipe.teacher is not None):
            network = "auto"  # the teacher's
        settings = settings_of(method, self.size, self.wish.short)
        more = 0 if self.facts is None else self.facts.more_bytes
        return predict(
            recipe, found, self.wish, network=network, settings=settings, more_bytes=more, opening=self.opening, room=self.room
        )

    def smaller(self) -> str | None:
        """A smaller network, where the choice is the plan's and there is one."""
        if self.wish.network != "auto" or self.teacher is not None:
            return None
        return {"small": "tiny", "ddpmpp": "small"}.get(self.network)

    def result(self, routes: list[Route]) -> Plan:
        """The plan."""
        assert self.facts is not None
        chosen, others = routes[0], routes[1:]
        limit = self.wish.limit
        size, name = self.size, self.facts.name
        return Plan(
            data=self.facts,
            wish=self.wish,
            conditional=self.conditional,
            machine=machine(self.device),
            predictions=tuple(sorted(self.predictions.values(), key=lambda run: METHODS.index(run.method))),
            routes=tuple(routes),
            fits=chosen.fits,
            reasons=tuple(reasons(chosen, others)),
            runner_up=(others[0].title, runner_up_reason(chosen, others[0])) if others else None,
            sure=tuple(sureness(chosen, random=self.random, stand_in=self.teacher is None, name=name, size=size)),
            shortfalls=tuple(shortfalls(chosen, limit, self.room, self.would_fit())),
            assumptions=tuple(self.assumptions()),
            created=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        )

    def would_fit(self) -> str | None:
        """The largest budgets within the limit, of the methods that were measured."""
        limit, fits = self.wish.limit, []
        if limit is None:
            return None
        for (method, network), found in self.found.items():
            recipe = self.recipe(method, MODEST, self.batch(self.wish.images), network)
            images = _rounded(images_within(_MARGIN * limit, recipe, found, self.opening))
            if images >= recipe.batch:
                fits.append(f"{method} ({network}) with {count_text(images)} images")
        return ", ".join(fits) or None

    def assumptions(self) -> list[Assumption]:
        """Numbers that were given, or that nobody gave."""
        wish = self.wish
        batch_note = "images a step" + ("" if wish.batch else "; smaller where there would be fewer than 1,000 steps")
        found = [Assumption("batch", float(wish.batch or BATCH), "images", "given" if wish.batch else "default", batch_note)]
        if wish.limit is None or wish.images is not None:
            note = "budget of each run"
            found.append(
                Assumption("images", float(wish.images or MODEST), "images", "given" if wish.images else "default", note)
            )
        for label, value, unit in (
            ("deadline", wish.deadline, "s"),
            ("budget", wish.budget, wish.currency),
            ("price", wish.price, f"{wish.currency} an hour"),
            ("watts", wish.watts, "W"),
        ):
            if value is not None:
                found.append(Assumption(label, float(value), unit, "given"))
        return found


def _material(data: ImageData | None, shape: tuple[int, int, int] | None, classes: int) -> tuple[ImageData, bool]:
    if (data is None) == (shape is None):
        raise InputError("a plan needs data, or the shape of images: give one of both")
    if data is not None:
        return data, False
    assert shape is not None
    return random_images(shape, classes), True


def _methods(methods: Sequence[str] | None, teacher: ConsistencyModel | None) -> tuple[str, ...]:
    usual = ("cd", "progressive", "ect", "ict") if teacher is not None else ("ict", "ct", "ect", "diffusion", "cd")
    chosen = tuple(dict.fromkeys(methods or usual))
    if unknown := [method for method in chosen if method not in METHODS]:
        raise InputError(f"method {unknown[0]!r} is not known; known: {', '.join(METHODS)}")
    return chosen


def usual_network(shape: tuple[int, int, int]) -> str:
    """What ``"auto"`` means for images of a shape (C, H, W)."""
    channels, side, _ = shape
    usual = named("auto", side, channels)
    return next(name for name in NAMES[1:] if named(name, side, channels) == usual)


def _rounded(images: int) -> int:
    """A budget down to two digits."""
    scale = 10 ** max(0, len(str(images)) - 2)
    return images // scale * scale
