"""The verb ``plan``: what a training would take, and which one to choose."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import atonce
from atonce.core.errors import InputError
from atonce.verbs.output import show

if TYPE_CHECKING:
    from atonce.planning.plan import Plan
    from atonce.planning.predict import Prediction


def plan(
    data: str | None = None,
    shape: str | None = None,
    classes: int = 0,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    skip_bad: bool = False,
    teacher: str | None = None,
    network: str = "auto",
    conditional: bool = False,
    images: int | None = None,
    batch: int | None = None,
    deadline: str | None = None,
    budget: float | None = None,
    price: float | None = None,
    watts: float | None = None,
    currency: str = "USD",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    seconds: float = 20.0,
    out: Path | None = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Say what a training would take (time, memory, disk, money, energy) and which one to choose, before it is paid for.

    The real training loop runs for a moment with each candidate, in processes of their own. Also: atonce plan return, what one
    step saves against many; atonce plan compare, models side by side.

    Example: atonce plan --data digits --deadline 20min --price 2.5

    Args:
        data: Name (digits, fashion-mnist, cifar10, ...), or a folder, zip or file of images.
        shape: Channels, height and width (3x64x64), where there are no data yet: random images stand in.
        classes: Their classes, with --shape.
        size: Crop and resize images to this height and width.
        channels: 1 for grey, 3 for RGB.
        skip_bad: Skip unreadable images instead of stopping.
        teacher: Diffusion model that can be distilled: gallery name, run folder, model folder or hub id.
        network: auto, tiny, small, ddpmpp, ncsnpp, ncsnpp-deep, adm or adm-deep; with auto a smaller one is tried where the
            usual one does not fit.
        conditional: Train with the data's labels.
        images: Budget of each run in images seen; default: what deadline and budget leave, or 2,000,000.
        batch: Images per optimiser step; default 128, less for short runs.
        deadline: Time there is (90min, 8h, 2d), or a moment (2026-12-24T18:00).
        budget: Money there is; needs --price.
        price: Money for an hour of the device.
        watts: Power of the device under load, for the energy.
        currency: How money is written.
        device: auto, cpu, cuda or cuda:N.
        precision: As for training.
        seconds: About how long the probes train together; the start of each comes on top.
        out: Picture of time and memory (.png).
        quiet: Show no progress.
        json: Print the plan as JSON.

    Returns:
        The exit status: 1 where the plan cannot be met.

    Raises:
        InputError: A value is out of range, or data and teacher do not fit.
    """
    from atonce.core.files import write_bytes
    from atonce.core.progress import Progress
    from atonce.data.sources import open_data
    from atonce.planning.charts import plan_figure
    from atonce.planning.plan import plan as make
    from atonce.planning.wish import Wish
    from atonce.planning.words import image_shape, seconds_until
    from atonce.reports.plots import png

    if (data is None) == (shape is None):
        raise InputError("a plan needs --data, or --shape (for example 3x64x64) where there are none yet: give one of both")
    if classes and shape is None:
        raise InputError(f"--classes {classes} goes with --shape: data have classes of their own")
    if classes < 0 or classes == 1:
        raise InputError(f"classes is {classes}, must be 0 or at least 2")
    check_picture(out)
    wish = Wish(
        images=images,
        batch=batch,
        network=network,
        conditional=conditional,
        deadline=None if deadline is None else seconds_until(deadline),
        budget=budget,
        price=price,
        watts=watts,
        currency=currency,
        device=device,
        precision=precision,
        seconds=seconds,
    )
    form = None if shape is None else image_shape(shape)
    began = time.perf_counter()
    opened = None if data is None else open_data(data, size=size, channels=channels, skip_bad=skip_bad)
    opening = time.perf_counter() - began
    taught = None if teacher is None else atonce.load(teacher)
    with contextlib.ExitStack() as shown:
        bar: Progress | None = None  # made when something happens, so that a refusal is one line

        def told(done: float, total: float, text: str) -> None:
            nonlocal bar
            bar = bar or shown.enter_context(Progress("measuring", total, "presets", quiet=quiet))
            bar.total = total
            bar.update(done, text)

        made = make(wish, opened, shape=form, classes=classes, teacher=taught, opening=opening, told=told)
    if out is not None:
        write_bytes(out, png(plan_figure(made)))
    lines = commands(made, data or "DATA", teacher)
    show({**made.to_json(), "commands": lines}, plan_text(made, lines, out), json)
    return 0 if made.fits else 1


def check_picture(out: Path | None) -> None:
    """Refuse a name that is no picture's, or a file that is not ours, before any work.

    Args:
        out: Where the picture is to go, if anywhere.

    Raises:
        InputError: It cannot go there.
    """
    from atonce.reports.pictures import is_ours

    if out is not None and out.suffix.lower() != ".png":
        raise InputError(f"the picture cannot be written to {out}: give a name that ends in .png")
    if out is not None and out.exists() and not is_ours(out):
        raise InputError(f"{out} exists and was not made by atonce: choose another name, nothing was changed")


def commands(made: Plan, data: str, teacher: str | None) -> list[str]:
    """The commands that do what is advised.

    Args:
        made: The plan.
        data: As the data were named.
        teacher: As the teacher was named.

    Returns:
        One line for each run.
    """
    from atonce.planning.candidates import DISTILLING, command

    lines: list[str] = []
    for run in made.advised.runs:
        settings = {**run.settings, **({"conditional": True} if made.conditional else {})}
        source = teacher or ("runs/teacher" if lines else None)
        further = {
            "teacher": source if run.method in DISTILLING else None,
            "init": source if run.taught and run.method not in DISTILLING else None,
            "microbatch": None if run.microbatch is None else str(run.microbatch),
            "out": "runs/teacher" if run.method == "diffusion" else "runs/planned",
        }
        network = "auto" if run.taught else run.network
        lines.append(command(run.method, data, run.images, run.batch, network, settings, **further))
    return lines


def plan_text(made: Plan, lines: list[str], out: Path | None = None) -> str:
    """A plan for people.

    Args:
        made: The plan.
        lines: The commands.
        out: The picture, if one was written.

    Returns:
        Lines.
    """
    from atonce.planning.estimate import duration_text, plain_text, range_text
    from atonce.verbs.bench import table_text

    facts, wish = made.data, made.wish
    c, h, w = facts.shape
    named = "no data yet: random images" if facts.random else f"{facts.name}: {facts.count:,} images"
    text = [f"{named}, {c}x{h}x{w}" + (f", {len(facts.labels)} classes" if facts.labels else "")]
    limits = []
    if wish.deadline is not None:
        limits.append(f"{duration_text(wish.deadline)} of time")
    if wish.budget is not None and wish.price is not None:
        limits.append(f"{wish.budget:g} {wish.currency} at {wish.price:g} an hour")
    text.append(f"measured on {made.machine}" + (f"; limits: {' and '.join(limits)}" if limits else "; no limit given"))
    head = ["preset", "network", "images", "batch", "an image", "whole run", "memory", "disk"]
    head += [wish.currency] if wish.price is not None else []
    head += ["kWh"] if wish.watts is not None else []
    rows = [_row(run) for run in made.predictions]
    text += ["", table_text(head, rows), ""]
    chosen = made.advised
    title = "advised" if made.fits else "does not fit; the nearest to it"
    total = range_text(chosen.time, duration_text)
    money = "" if chosen.money is None else f", {range_text(chosen.money, lambda v: f'{_short(v)} {wish.currency}')}"
    energy = "" if chosen.energy is None else f", {range_text(chosen.energy, lambda v: f'{_short(v)} kWh')}"
    text.append(f"{title}: {chosen.title}, in all {total}{money}{energy}")
    text += [f"  {line}" for line in lines]
    text += [f"because {reason}" for reason in made.reasons]
    if made.runner_up is not None:
        text.append(f"runner-up: {made.runner_up[0]}: {made.runner_up[1]}")
    text += [f"how sure, {each.about}: {each.grade}: {each.why}" for each in made.sure]
    text += [f"not met: {each}" for each in made.shortfalls]
    text += [
        f"assumed: {each.name} {plain_text(each.value)} {each.unit} ({each.source}) {each.note}".rstrip()
        for each in made.assumptions
    ]
    return "\n".join([*text, *([f"picture: {out}"] if out else [])])


def _row(run: Prediction) -> list[str]:
    from atonce.planning.estimate import bytes_text, count_text, duration_text, range_text, significant

    cells = [
        run.method,
        "the teacher's" if run.taught and run.network == "auto" else run.network,
        count_text(run.images),
        str(run.batch) + (f" by {run.microbatch}" if run.microbatch else ""),
    ]
    each = run.per_image.value
    cells.append(f"{significant(1000 * each):g} ms" if each < 1 else duration_text(each))
    cells += [range_text(run.time, duration_text), bytes_text(run.memory.value)]
    if run.device_memory is not None:
        cells[-1] += f", {bytes_text(run.device_memory.value)} on the device"
    cells.append(bytes_text(run.disk.value))
    return cells + [_short(value.value) for value in (run.money, run.energy) if value is not None]


def _short(value: float) -> str:
    from atonce.planning.estimate import significant

    return f"{significant(value):g}"
