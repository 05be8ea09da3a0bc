"""What a training would take, before it is started: a probe of its own step on this machine, by the planner."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from atonce.core.errors import InputError
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.exchange.open import open_model
from atonce.model import ConsistencyModel
from atonce.planning.estimate import bytes_text, duration_text, range_text, significant
from atonce.planning.machine import available_memory, machine
from atonce.planning.material import copy_for_probes
from atonce.planning.measure import measure
from atonce.planning.predict import Prediction, predict
from atonce.planning.wish import Wish
from atonce.studio.train_form import OWN, Form, recipe_of, settings
from atonce.studio.train_sources import Source
from atonce.training.options import pick_device
from atonce.training.recipe import Recipe
from atonce.training.start import resolve, starting_weights
from atonce.training.teacher import check_teacher

SECONDS = 6.0  # that the probe trains; the start of its process comes on top


class StoppedError(Exception):
    """The estimate is no longer wanted."""


def opened(form: Form, source: Source) -> tuple[Recipe, ImageData, ConsistencyModel | None]:
    """The recipe with all that depends on data and starting model filled in; refuses what would be refused at the start.

    Args:
        form: What is asked for.
        source: The data.

    Returns:
        The resolved recipe, the data, and the model that the run starts from or distils.

    Raises:
        InputError: Something does not fit; the message says what.
    """
    data = open_data(source.place, size=form.size)
    if data.shape[1] != data.shape[2]:
        raise InputError(f"{data.name} has images of {data.shape[1]}x{data.shape[2]}: networks take squares, so give a size")
    model = None if form.start is None else open_model(form.start)
    recipe = resolve(recipe_of(form, data.shape[1]), data, model)
    check_teacher(model if form.distils else None, recipe, data)
    if model is not None:
        starting_weights(model, recipe)
    return recipe, data, model


def estimate(
    form: Form, source: Source, stop: threading.Event, told: Callable[[float, str], None], seconds: float = SECONDS
) -> Prediction:
    """Measure the step of a training for a moment, in a process of its own.

    Args:
        form: What is asked for.
        source: The data.
        stop: Set by somebody else, ends it.
        told: Told how far it is, from 0 to 1, and what is done.
        seconds: That the probe trains.

    Returns:
        What the whole run would take.

    Raises:
        InputError: Form, data and models do not fit together.
        StoppedError: It was stopped.
        TrainingError: The probe did not get through.
    """

    def listen(share: float, text: str) -> None:
        if stop.is_set():
            raise StoppedError
        told(share, text)

    listen(0.0, "opening the data")
    recipe, data, model = opened(form, source)
    device = pick_device("auto")
    with tempfile.TemporaryDirectory(prefix="atonce-studio-") as place:
        folder = Path(place)
        facts = copy_for_probes(data, folder / "data.npz")
        if model is not None:
            model.save_pretrained(folder / "start")
        listen(0.05, "starting the probe")
        found = measure(
            recipe,
            folder / "data.npz",
            batch=recipe.batch,
            labels=facts.labels,
            teacher=None if model is None else folder / "start",
            seconds=seconds,
            device=str(device),
            told=lambda share, text: listen(0.1 + 0.9 * share, f"measuring: {text}"),
        )
    network = form.network if form.network != OWN else "auto"
    return predict(
        recipe,
        found,
        Wish(images=recipe.images, batch=recipe.batch, seconds=seconds),
        network=network,
        settings=settings(form, data.shape[1]),
        more_bytes=facts.more_bytes,
        room=available_memory(device),
    )


def estimate_text(found: Prediction) -> list[tuple[str, str]]:
    """An estimate for people.

    Args:
        found: The prediction.

    Returns:
        Names and values, in the order in which they are shown.
    """
    each = found.per_image.value
    lines = [
        ("whole run", range_text(found.time, duration_text)),
        ("an image", f"{significant(1000 * each):g} ms ({significant(1 / each):g} images a second)"),
        ("memory", range_text(found.memory, bytes_text)),
    ]
    if found.device_memory is not None:
        lines.append(("memory of the device", range_text(found.device_memory, bytes_text)))
    if found.microbatch is not None:
        lines.append(("does not fit", f"a whole batch needs more memory than is free; passes of {found.microbatch} would fit"))
    lines.append(("disk", bytes_text(found.disk.value)))
    lines.append(("network", f"{found.measurement.parameters:,} parameters"))
    lines.append(
        ("rests on", f"{found.time.note}, {machine(pick_device('auto'))}; other work that runs beside it slows it down")
    )
    return lines
