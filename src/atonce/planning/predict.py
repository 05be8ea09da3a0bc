"""From what a probe measured to a whole run: time, memory, disk, money and energy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from atonce.planning.estimate import Estimate
from atonce.planning.measure import Measurement
from atonce.planning.wish import Wish
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.schedule import stage_at

_ROOM = 0.9  # share of the memory that is free now which a run may take
_SURE, _UNSURE = 0.08, 0.2  # least relative width to both sides: batch measured, batch reckoned from smaller ones


@dataclass(frozen=True)
class Prediction:
    """What a preset would take.

    Attributes:
        method: The preset.
        network: Name of the network.
        batch: Images a step.
        images: Budget in images.
        microbatch: Images a pass, where a whole batch does not fit in memory.
        settings: Recipe fields that are not the preset's.
        taught: Whether it needs a teacher.
        per_image: Seconds for an image of training.
        time: Seconds of the whole run.
        parts: Seconds of its parts.
        memory: Peak bytes of the process.
        device_memory: Peak bytes on a CUDA device; ``None`` elsewhere.
        disk: Bytes of the run folder at its largest.
        money: At the price of a device hour; ``None`` without one.
        energy: kWh; ``None`` without watts.
        measured_batch: The largest batch that was tried.
        measurement: What the probe found.
    """

    method: str
    network: str
    batch: int
    images: int
    microbatch: int | None
    settings: dict[str, Any]
    taught: bool
    per_image: Estimate
    time: Estimate
    parts: dict[str, float]
    memory: Estimate
    device_memory: Estimate | None
    disk: Estimate
    money: Estimate | None
    energy: Estimate | None
    measured_batch: int
    measurement: Measurement

    @property
    def pressing(self) -> Estimate:
        """The memory that may be too little: the device's where there is one."""
        return self.device_memory or self.memory

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: v.to_json() if hasattr(v, "to_json") else v for name, v in values.items()}


def predict(
    recipe: Recipe,
    found: Measurement,
    wish: Wish,
    *,
    network: str,
    settings: dict[str, Any],
    more_bytes: int = 0,
    opening: float = 0.0,
    room: int | None = None,
    options: Options | None = None,
) -> Prediction:
    """What a run takes.

    Args:
        recipe: The run; resolved or not.
        found: What the probe of this method and network measured.
        wish: Price and power.
        network: Name of the network.
        settings: Recipe fields that are not the preset's.
        more_bytes: What the data hold beyond the probe's copy.
        opening: Seconds in which the data are opened.
        room: Free bytes; where the run needs more, it is reckoned with smaller passes.
        options: Cadence of evaluations and checkpoints; default: that of training.

    Returns:
        The prediction.
    """
    options = options or Options()
    microbatch = _microbatch(recipe.batch, found, more_bytes, room)
    step = step_seconds(found, recipe.batch, microbatch)
    parts = _parts(recipe, found, step, options, opening)
    low, high, note = _spread(found, min(recipe.batch, microbatch or recipe.batch))
    seconds = sum(parts.values())
    training = parts["training"]
    time = Estimate(seconds, seconds - training * (1 - low), seconds + training * (high - 1), "s", note)
    passed = microbatch or recipe.batch
    memory = memory_bytes(found, passed) + more_bytes
    wide = 0.1 if passed <= found.batches[-1] else 0.2
    on_device = linear(found.batches, found.device_memory, passed) if any(found.device_memory) else None
    disk = _disk(recipe, found, parts, options)
    return Prediction(
        method=recipe.method,
        network=network,
        batch=recipe.batch,
        images=recipe.images,
        microbatch=microbatch,
        settings=settings,
        taught=recipe.teacher is not None or recipe.init is not None,
        per_image=Estimate(step / recipe.batch, step / recipe.batch * low, step / recipe.batch * high, "s", note),
        time=time,
        parts=parts,
        memory=_around(memory, wide, note),
        device_memory=None if on_device is None else _around(on_device, wide, note),
        disk=Estimate(disk, disk * 0.9, disk * 1.1, "bytes", "sizes of the probe's files"),
        money=None if wish.price is None else time.times(wish.price / 3600, wish.currency),
        energy=None if wish.watts is None else time.times(wish.watts / 3.6e6, "kWh", f"{wish.watts:g} W all the time; {note}"),
        measured_batch=found.batches[-1],
        measurement=found,
    )


def step_seconds(found: Measurement, batch: int, microbatch: int | None = None) -> float:
    """Seconds of an optimiser step.

    Args:
        found: What was measured, of one or two batches.
        batch: Images a step.
        microbatch: Images a pass; more are accumulated.

    Returns:
        Seconds: measured, or on the line through the two batches that were.
    """
    if microbatch and microbatch < batch:
        whole, rest = divmod(batch, microbatch)
        return whole * step_seconds(found, microbatch) + (step_seconds(found, rest) if rest else 0.0)
    largest, seconds = found.batches[-1], found.steps[-1]
    straight = linear(found.batches, found.steps, batch)
    fair = seconds * batch / largest  # in proportion; a line through noisy points may leave it by so much, not more
    return min(max(straight, 0.7 * fair), 1.3 * fair) if batch > largest else max(straight, fair)


def memory_bytes(found: Measurement, batch: int) -> float:
    """Peak bytes of the process with passes of a size; never less than before the training."""
    return max(float(found.floor), linear(found.batches, found.memory, batch))


def linear(at: tuple[int, ...], values: tuple[float, ...] | tuple[int, ...], where: int) -> float:
    """The value on the line through two points, which does not fall; with one point, that point's."""
    if len(at) < 2:
        return float(values[-1])
    slope = max(0.0, (values[-1] - values[0]) / (at[-1] - at[0]))
    return float(values[-1] + slope * (where - at[-1]))


def images_within(seconds: float, recipe: Recipe, found: Measurement, opening: float = 0.0) -> int:
    """The largest budget whose run takes at most so long.

    Args:
        seconds: The limit.
        recipe: The run; its budget does not matter.
        found: What was measured.
        opening: Seconds in which the data are opened.

    Returns:
        Images, whole batches; 0 where not even one step fits.
    """
    step, options = step_seconds(found, recipe.batch), Options()

    def takes(steps: int) -> float:
        return sum(_parts(recipe, found, step, options, opening, steps).values())

    low, high = 0, max(1, int(seconds / step) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle) <= seconds else (low, middle - 1)
    return low * recipe.batch


def _parts(
    recipe: Recipe, found: Measurement, step: float, options: Options, opening: float, steps: int | None = None
) -> dict[str, float]:
    """Seconds of everything that a run does, by the cadence of the loop."""
    batch = recipe.batch
    steps = max(1, recipe.images // batch if steps is None else steps)
    total = steps * batch
    log_every, evaluate_every = cadence(total, batch, options)
    logs = -(-total // log_every)
    marks = [min(mark, total) for mark in range(evaluate_every, total + evaluate_every, evaluate_every)]
    # The gradients by noise level are of a batch's first 256 images, at the probe of those it had.
    fixed = found.evaluation + step_seconds(found, min(batch, 256)) - step_seconds(found, min(found.batches[-1], 256))
    calls = [_calls(recipe, mark, total, found) for mark in marks] if len(marks) < 1000 else [found.calls] * len(marks)
    evaluations = len(marks) * max(fixed, 0.5 * found.evaluation)
    training = steps * step + logs * found.log
    samples = sum(calls) * options.evaluate_images * found.sample
    checkpoints = (
        int((training + evaluations + samples) / options.checkpoint_seconds) + 1 if options.checkpoint_seconds else steps
    )
    return {
        "start": found.startup + opening,
        "training": training,
        "evaluations": evaluations + samples,
        "checkpoints": checkpoints * found.checkpoint,
        "saving": found.save,
    }


def cadence(total: int, batch: int, options: Options) -> tuple[int, int]:
    """Images between two log lines and two evaluations, as the loop has them.

    Args:
        total: Images of the run, whole batches.
        batch: Images a step.
        options: What is set.

    Returns:
        Both, in whole batches.
    """
    often = options.evaluate_every or max(total // 12, 8 * options.evaluate_images)
    return tuple(max(1, round(n / batch)) * batch for n in (options.log_every or total // 200, often))  # type: ignore[return-value]


def _calls(recipe: Recipe, mark: int, total: int, found: Measurement) -> int:
    """Network calls of an evaluation's sample; students of progressive distillation need fewer and fewer."""
    if recipe.pairs != "halving":
        return found.calls
    seen = min(recipe.images - 1, max(0, round((mark - recipe.batch) / total * recipe.images)))
    return stage_at(recipe, seen).points - 1


def _spread(found: Measurement, batch: int) -> tuple[float, float, str]:
    """Factors of the least and the most that a step may take, and what the step rests on."""
    low, high = (quartile / found.steps[-1] for quartile in found.quartiles)
    if batch == found.batches[-1]:
        return min(low, 1 - _SURE), max(high, 1 + _SURE), f"measured here with batches of {batch}"
    tried = " and ".join(map(str, found.batches))
    return min(low, 1 - _UNSURE), max(high, 1 + _UNSURE), f"reckoned from batches of {tried}, measured here"


def _around(value: float, wide: float, note: str) -> Estimate:
    return Estimate(value, value * (1 - wide), value * (1 + wide), "bytes", note)


def _microbatch(batch: int, found: Measurement, more: int, room: int | None) -> int | None:
    """The largest pass, by halving, that fits; ``None`` where the whole batch does, or nothing does."""
    if room is None:
        return None
    on_device = any(found.device_memory)
    size = batch
    while size >= 1:
        need = linear(found.batches, found.device_memory, size) if on_device else memory_bytes(found, size) + more
        if need <= _ROOM * room:
            return None if size == batch else size
        size //= 2
    return None


def _disk(recipe: Recipe, found: Measurement, parts: dict[str, float], options: Options) -> float:
    """Bytes of the run folder at its largest: checkpoints and models, of each the one being written too, and the rest."""
    total = max(1, recipe.images // recipe.batch) * recipe.batch
    log_every, evaluate_every = cadence(total, recipe.batch, options)
    lines, evaluations = -(-total // log_every), -(-total // evaluate_every)
    checkpoints = min(options.keep, max(1, round(parts["checkpoints"] / max(found.checkpoint, 1e-9)))) + 1
    rest = (lines + evaluations) * found.line_bytes + evaluations * found.picture_bytes
    return checkpoints * found.checkpoint_bytes + 3 * found.model_bytes + rest
