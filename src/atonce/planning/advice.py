"""A plan in sentences: why this route, how sure that is and why, and what would fit where nothing does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atonce.planning.estimate import bytes_text, count_text, duration_text, significant
from atonce.planning.evidence import Line
from atonce.planning.routes import Route

Grade = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Sureness:
    """How sure a part of a plan is.

    Attributes:
        about: Which part.
        grade: How sure.
        why: What it rests on.
    """

    about: str
    grade: Grade
    why: str


def reasons(chosen: Route, others: list[Route]) -> list[str]:
    """Why a route is advised.

    Args:
        chosen: The route.
        others: The other ones, the runner-up first.

    Returns:
        Sentences.
    """
    found = []
    if chosen.line is not None and chosen.line.one is not None:
        line = chosen.line
        rivals: dict[str, Line] = {}
        for each in others:
            if each.line is not None and each.line.data == line.data and each.line.method != line.method:
                rivals.setdefault(each.line.method, each.line)
        against = ", ".join(f"{rival.method} {_distance(rival.one)}" for rival in rivals.values())
        besides = " besides its teacher's" if line.teacher else ""
        found.append(
            f"measured by us on {line.data} ({line.size}x{line.size}), {line.images:,} images{besides}, one step: "
            f"{line.method} {_distance(line.one)}"
            + (f", against {against}" if against else "")
            + " (Fréchet distance, less is better)"
        )
    if len(chosen.runs) > 1:
        found.append("there is no teacher yet: the first run makes one, the second distils it")
    if chosen.known:
        scarce = min(zip(chosen.runs, chosen.known, strict=True), key=lambda pair: pair[0].images / pair[1].images)
        run, known = scarce
        times = run.images / known.images
        word = "as many as" if 0.95 < times < 1.05 else f"{count_text(times)} times" if times >= 0.01 else "a small part of"
        found.append(f"{count_text(run.images)} images are {word} those of the least known run: {known.sentence}")
    else:
        found.append("no run of this kind with images of this size is known to us")
    return found


def runner_up_reason(chosen: Route, second: Route) -> str:
    """What speaks for the second route and against it.

    Args:
        chosen: The advised route.
        second: The runner-up.

    Returns:
        One sentence.
    """
    parts = []
    if second.line is not None and second.line.one is not None:
        parts.append(f"{_distance(second.line.one)} in our table")
    elif second.known:
        parts.append(second.known[-1].sentence)
    if not second.fits and chosen.fits:
        parts.append("it does not fit the limits")
    elif not second.supported and chosen.supported:
        parts.append("with so few images no run of it is known")
    parts.append(f"{duration_text(second.time.value)} for {count_text(second.images)} images in all")
    return "; ".join(parts)


def sureness(chosen: Route, *, random: bool, stand_in: bool, name: str, size: int) -> list[Sureness]:
    """How sure time, memory and method are.

    Args:
        chosen: The advised route.
        random: Whether the probes had random images.
        stand_in: Whether an untrained teacher stood in for one that is still to be made.
        name: Of the data.
        size: Height and width of the images.

    Returns:
        A grade for each, with its reason.
    """
    direct = all((run.microbatch or run.batch) == run.measured_batch for run in chosen.runs)
    noisy = any(run.measurement.quartiles[1] > 1.25 * run.measurement.quartiles[0] for run in chosen.runs)
    grade: Grade = "high" if direct and not noisy else "medium" if direct or not noisy else "low"
    notes = list(dict.fromkeys(run.per_image.note for run in chosen.runs))
    if noisy:
        notes.append("steps differed much in length, as they do where other work runs beside")
    if any(run.measurement.precision == "bfloat16" for run in chosen.runs):
        notes.append("in bfloat16; where the curriculum asks for float32 later, steps get slower")
    if random:
        notes.append("on random images of the shape: opening real ones takes longer")
    if stand_in and len(chosen.runs) > 1:
        notes.append("distillation was measured with an untrained teacher, which costs the same")
    found = [Sureness("time and memory", grade, "; ".join(notes))]
    line = chosen.line
    if line is not None and line.data == name and line.size == size and chosen.supported:
        return [
            *found,
            Sureness("method", "medium", f"our own table on the same data, {line.seeds} runs of {line.images:,} images"),
        ]
    if chosen.supported and chosen.known:
        sources = {known.source for known in chosen.known}
        whose = (
            "our own runs at small scale"
            if sources == {"measured"}
            else "published runs"
            if sources == {"published"}
            else "our and published runs"
        )
        known = max(chosen.known, key=lambda each: each.size)
        return [
            *found,
            Sureness(
                "method", "low", f"{whose}, on other data ({known.data}): quality on yours is not known before it is measured"
            ),
        ]
    why = "no run with so few images of this size is known"
    return [*found, Sureness("method", "low", why + ("" if chosen.share > 0.25 else ": expect a first look, not quality"))]


def shortfalls(chosen: Route, limit: float | None, room: int | None, would: str | None) -> list[str]:
    """By how much the best route does not fit, and what would.

    Args:
        chosen: The route.
        limit: Seconds that there are.
        room: Free bytes.
        would: What would fit, in words.

    Returns:
        Sentences; none where it fits.
    """
    found = []
    if chosen.late and limit is not None:
        found.append(
            f"{chosen.name} takes {duration_text(chosen.time.value)}, {duration_text(chosen.late)} more than the "
            f"{duration_text(limit)} that deadline and budget leave"
        )
    if chosen.lacking and room is not None:
        need = chosen.lacking + room
        found.append(
            f"{chosen.name} needs {bytes_text(need)} of memory even with one image a pass, {bytes_text(room)} are free"
        )
    if found:
        found.append(
            f"what would fit: {would}" if would else "nothing that was weighed fits: give more time, or smaller images"
        )
    return found


def _distance(value: tuple[float, float] | None) -> str:
    if value is None:
        return "not measured"
    return f"{significant(value[0]):g} ± {significant(value[1], 1):g}" if value[1] else f"{significant(value[0]):g}"
