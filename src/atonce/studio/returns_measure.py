"""Measures both ways of the Return tab through the service's own engine, so that what is measured is what callers get."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.model_config import default_batch
from atonce.planning.returns import Way
from atonce.planning.ways import HEUN_STEPS, measured_way
from atonce.serving.engine import Engine

MOST_STEPS = 200
_ROUNDS, _SINGLES = 6, 16  # batches and single images that are made at most, with those that are not counted
_CALL_SECONDS, _LEAST_BATCH = 0.03, 8  # about how long one call of a batch may take, so that others wait no longer for it


@dataclass(frozen=True)
class Plan:
    """What will be measured.

    Attributes:
        engine: The engine of the model.
        name: What the way is called.
        steps: Steps of its sampler.
        batch: Images at once.
        note: What is said before the numbers' own note.
    """

    engine: Engine
    name: str
    steps: int
    batch: int
    note: str = ""

    @property
    def calls(self) -> int:
        """Network calls for an image."""
        model = self.engine.model
        return 2 * self.steps - 1 if model.kind == "denoiser" and model.config.sampler != "euler" else self.steps

    @property
    def images(self) -> int:
        """Images that are made at most."""
        return _ROUNDS * self.batch + _SINGLES

    @property
    def seconds(self) -> float:
        """About how long it takes, from the engine's rate; 0 where that is not known."""
        rate = self.engine.status().rate
        return 0.0 if rate <= 0 else self.calls * (_ROUNDS * self.batch / rate + 2 * _SINGLES / rate)


def plan(engine: Engine, steps: object) -> Plan:
    """How a model will be measured.

    Args:
        engine: Of the model.
        steps: Steps of its sampler.

    Returns:
        The plan.

    Raises:
        InputError: Steps are no whole number from 1 to 200.
    """
    count = whole(int(steps) if isinstance(steps, float) and steps.is_integer() else steps, "steps", 1, MOST_STEPS)
    batch = min(default_batch(engine.model.device), max(_LEAST_BATCH, int(engine.status().rate * _CALL_SECONDS)))
    return Plan(engine, f"{engine.name}, {count} step{'s' if count > 1 else ''}", count, batch)


def stand_in(after: Plan) -> Plan:
    """A baseline where there is no diffusion model: the same network, called 35 times for an image.

    Args:
        after: The model with its own steps.

    Returns:
        The plan; of a diffusion model its 18 Heun steps, which are 35 calls.
    """
    if after.engine.model.kind == "denoiser":
        return plan(after.engine, HEUN_STEPS)
    calls = 2 * HEUN_STEPS - 1
    made = plan(after.engine, calls)
    return dataclasses.replace(
        made,
        name=f"{made.engine.name}'s network, {calls} calls",
        note=f"no baseline was given: the same network called {calls} times",
    )


def measure(made: Plan, stop: threading.Event, told: Callable[[str], None] | None = None) -> Way:
    """Time a way; its network calls wait in the queue with everybody else's.

    Args:
        made: The plan.
        stop: Set by another thread, gives it up before the next call.
        told: Told what is timed.

    Returns:
        The way, marked as measured.

    Raises:
        CancelledError: It was given up.
        ServiceError: The engine refused it.
    """
    with made.engine.calls(kind="measure", stop=stop) as model:
        way = measured_way(model, made.name, steps=made.steps, batch=made.batch, told=told)
    backend = made.engine.status().backend
    note = "; ".join(filter(None, (made.note, way.note, f"through the service ({backend})")))
    return dataclasses.replace(way, note=note)


def form_values(before: Way, after: Way) -> dict[str, Any]:
    """Measured ways as the form takes them.

    Args:
        before: The baseline.
        after: What replaces it.

    Returns:
        ``values`` by key, and ``names`` by role; published qualities are taken out, since they belong to other networks.

    Raises:
        InputError: A time is no number.
    """
    values: dict[str, dict[str, Any]] = {}
    for role, way in (("before", before), ("after", after)):
        for what, number in (("calls", way.calls), ("seconds", way.seconds), ("latency", way.latency)):
            if number is None or not math.isfinite(number):
                raise InputError(f"{what} of {way.name} could not be measured: try again")
            values[f"{what}@{role}"] = {"number": float(f"{number:.4g}"), "source": "measured", "note": way.note}
    return {"values": values, "names": {"before": before.name, "after": after.name}, "quality": {}}
