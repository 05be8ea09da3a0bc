"""The verb ``plan return``: what one-step generation saves against many steps, with every assumption in sight."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

import atonce
from atonce.core.errors import InputError
from atonce.verbs.output import show
from atonce.verbs.plan import check_picture

if TYPE_CHECKING:
    from atonce.planning.returns import Return, Way


def plan_return(
    model: Positional[str | None] = None,
    before: str | None = None,
    steps: int = 1,
    before_steps: int = 18,
    batch: int | None = None,
    seconds_before: float | None = None,
    seconds_after: float | None = None,
    latency_before: float | None = None,
    latency_after: float | None = None,
    calls_before: float | None = None,
    calls_after: float | None = None,
    images_per_day: float | None = None,
    price_per_hour: float | None = None,
    watts: float | None = None,
    price_per_kwh: float | None = None,
    power_included: bool = True,
    utilisation: float | None = None,
    overhead: float | None = None,
    once: float | None = None,
    currency: str = "USD",
    device: str = "auto",
    out: Path | None = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Reckon what a one-step model saves against many-step sampling: cost, energy and latency of images, and break-even.

    Seconds are measured here, for the model and for a baseline, or given. Without a baseline the same network is called 35
    times for an image (18 Heun steps), as the diffusion model that it may have come from would be.

    Example: atonce plan return digits --images-per-day 1000000 --price-per-hour 0.1 --watts 65 --once 50

    Args:
        model: Gallery name, run folder, model folder or hub id; may be left out where --seconds-after is given.
        before: The baseline: a model that is sampled in many steps, named in the same way.
        steps: Steps of the model.
        before_steps: Steps of the baseline; 18 Heun steps are 35 calls.
        batch: Images at once where throughput is measured; default: 64, on a GPU 256.
        seconds_before: Device seconds for an image of the baseline, instead of measuring.
        seconds_after: The same of the model.
        latency_before: Seconds from a request for one image to the image, of the baseline, instead of measuring.
        latency_after: The same of the model.
        calls_before: Network calls for an image, where the seconds are given; they are only shown.
        calls_after: The same of the model.
        images_per_day: Images made in a day; default 100,000.
        price_per_hour: Price of a device hour; default 2.5.
        watts: Power of the device under load; default 700.
        price_per_kwh: Price of energy; default 0.25. It counts with --no-power-included only.
        power_included: The device's price includes its power, as with rented machines.
        utilisation: Share of the paid time in which the device works; default 0.5.
        overhead: Energy of the building over that of the device (PUE); default 1.3.
        once: What the change costs once: training, evaluation, work; default 0.
        currency: How money is written.
        device: auto, cpu, cuda or cuda:N.
        out: Picture: cost and energy of 1,000 images, money over days (.png).
        quiet: Show no progress.
        json: Print the result as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value is out of range, or there is nothing to measure or to reckon with.
    """
    from atonce.core.files import write_bytes
    from atonce.planning.charts import return_figure
    from atonce.planning.returns import Terms, compare
    from atonce.reports.plots import png

    given: dict[str, Any] = {
        "images_per_day": images_per_day,
        "price_per_hour": price_per_hour,
        "watts": watts,
        "price_per_kwh": price_per_kwh,
        "utilisation": utilisation,
        "overhead": overhead,
        "once": once,
    }
    given = {name: value for name, value in given.items() if value is not None}
    terms = Terms(**given, power_included=power_included, currency=currency)
    check_picture(out)
    if model is None and (seconds_after is None or (seconds_before is None and before is None)):
        raise InputError(
            "there is nothing to measure: name a model, as in atonce plan return digits, or give --seconds-before and "
            "--seconds-after"
        )
    for name, flag, seconds, unused in (
        ("--before", before, seconds_before, "the baseline"),
        ("MODEL", model if seconds_before is not None or before is not None else None, seconds_after, "the model"),
    ):
        if flag is not None and seconds is not None:
            raise InputError(f"{name} {flag} would be measured, but the seconds of {unused} are given: leave one of both out")
    ways = _ways(
        model,
        before,
        (before_steps, steps),
        (seconds_before, seconds_after),
        (latency_before, latency_after),
        (calls_before, calls_after),
        batch,
        device,
        quiet,
    )
    found = compare(*ways, terms, dict.fromkeys(given, "given"))
    if out is not None:
        write_bytes(out, png(return_figure(found)))
    show(found.to_json(), return_text(found, out), json)
    return 0


def _ways(
    model: str | None,
    before: str | None,
    steps: tuple[int, int],
    seconds: tuple[float | None, float | None],
    latency: tuple[float | None, float | None],
    calls: tuple[float | None, float | None],
    batch: int | None,
    device: str,
    quiet: bool,
) -> tuple[Way, Way]:
    """The baseline and what replaces it, each measured or given."""
    from atonce.core.checks import whole
    from atonce.core.progress import Progress
    from atonce.planning.returns import Way
    from atonce.planning.ways import many_step, measured_way
    from atonce.training.options import pick_device

    whole(steps[0], "before_steps", 1, 10_000)
    whole(steps[1], "steps", 1, 10_000)
    if batch is not None:
        whole(batch, "batch", 1, 1 << 20)
    place = pick_device(device)
    names = ("before", "after")
    made: list[Way | None] = [
        None if s is None else Way(name, calls[i] or 1, s, latency[i], "given", "given, not measured")
        for i, (name, s) in enumerate(zip(names, seconds, strict=True))
    ]
    opened = None if model is None else atonce.load(model).to(place)
    baseline = None if before is None else atonce.load(before).to(place)
    stands_in = False
    if made[0] is None and baseline is None:
        assert opened is not None  # checked by the caller
        stands_in = opened.kind != "denoiser"
        baseline = many_step(opened) if stands_in else opened
    with contextlib.ExitStack() as shown:
        work = [i for i in (0, 1) if made[i] is None]
        bar = shown.enter_context(Progress("timing", len(work), "ways", quiet=quiet)) if work else None
        for done, i in enumerate(work):
            subject = baseline if i == 0 else opened
            assert subject is not None
            name = ("many steps of the same network" if stands_in else before or model) if i == 0 else model
            short = Path(str(name)).name if Path(str(name)).is_absolute() else name
            name = f"{short}, {steps[i]} step{'s' if steps[i] > 1 else ''}"

            def told(text: str, done: int = done, name: str = name) -> None:
                if bar is not None:
                    bar.update(done, f"{name}: {text}")

            way = measured_way(subject, name, steps=steps[i], batch=batch, told=told)
            if i == 0 and stands_in:
                way = _replaced(way, note=f"no baseline was given: the same network called {way.calls:g} times; {way.note}")
            made[i] = way if latency[i] is None else _replaced(way, latency=latency[i])
            if bar is not None:
                bar.update(done + 1)
    first, second = made
    assert first is not None
    assert second is not None
    return first, second


def _replaced(way: Way, **changes: Any) -> Way:
    import dataclasses

    return dataclasses.replace(way, **changes)


def return_text(found: Return, out: Path | None = None) -> str:
    """A return for people.

    Args:
        found: The comparison.
        out: The picture, if one was written.

    Returns:
        Lines.
    """
    from atonce.planning.estimate import count_text, duration_text, plain_text, significant
    from atonce.verbs.bench import table_text

    money = found.terms.currency

    def short(value: float) -> str:
        return f"{significant(value):g}"

    head = ["", "calls", "an image", "one alone", f"{money} for 1,000", "kWh for 1,000", f"{money} a day", "devices busy"]
    rows = []
    for cost in (found.before, found.after):
        way = cost.way
        alone = "-" if way.latency is None else _seconds(way.latency)
        cells = [way.name, f"{way.calls:g}", _seconds(way.seconds), alone, short(cost.per_1000), short(cost.kwh_per_1000)]
        rows.append([*cells, short(cost.per_day), short(cost.devices)])
    text = [table_text(head, rows), ""]
    times = f"{short(found.cheaper)} times cheaper" if found.cheaper >= 1 else f"{short(1 / found.cheaper)} times dearer"
    if found.faster is not None:
        times += (
            f", one image {short(found.faster)} times sooner"
            if found.faster >= 1
            else f", one image {short(1 / found.faster)} times later"
        )
    saved = (
        f"saves {short(found.saved_per_day)} {money}"
        if found.saved_per_day >= 0
        else f"costs {short(-found.saved_per_day)} {money} more"
    )
    energy = f"{short(abs(found.saved_kwh_per_day))} kWh {'less' if found.saved_kwh_per_day >= 0 else 'more'}"
    text.append(f"{times}; {saved} and takes {energy} a day")
    if found.break_even_days is None:
        text.append("it never pays back: the change saves nothing")
    elif found.terms.once:
        after = f"{duration_text(found.break_even_days * 86400)}, {count_text(found.break_even_images or 0)} images"
        text.append(f"pays back what it costs once ({short(found.terms.once)} {money}) after {after}")
    else:
        text.append("pays back at once: nothing was said to be paid once (--once)")
    included = "the price of the device includes its power" if found.terms.power_included else "power is paid for apart"
    text += ["", f"assumed ({included}):"]
    head = ["number", "value", "unit", "source", "note"]
    lines = [[each.name, plain_text(each.value), each.unit, each.source, each.note] for each in found.assumptions]
    text.append(_columns(head, lines))
    return "\n".join([*text, *([f"picture: {out}"] if out else [])])


def _seconds(value: float) -> str:
    from atonce.planning.estimate import duration_text, significant

    return f"{significant(1000 * value):g} ms" if value < 1 else duration_text(value)


def _columns(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    return "\n".join("  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[-1]]).rstrip() for row in [head, *rows])
