"""The tables, their explanation and the pictures of docs/editing.md, from the record and the gallery's models."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import editing_baselines as base
import torch
from cells import ROOT
from torch import Tensor

from atonce.core.images import from_uint8
from atonce.core.streams import Stream, normal
from atonce.editing import denoise, inpaint, interpolate, invert, local, outpaint, stroke, to_averages, upscale, variations
from atonce.editing.tasks import STEPS as DEFAULT
from atonce.reports.edit_pictures import known_picture
from atonce.reports.pictures import labelled_rows, write_png
from editing import AVERAGED, RECORD, Held, held_out, masks, pictures, rounded, strokes

PAGE = ROOT / "docs" / "editing.md"
PICTURES = ROOT / "docs" / "pictures"
TITLES = {"fashion": "Fashion-MNIST, 28 x 28", "digits": "Digits, 8 x 8"}
ORDER = ("fashion", "digits")


# ---- the page


def write() -> None:
    """Put tables and explanation between their marks in the page."""
    record = json.loads(RECORD.read_text())
    text = PAGE.read_text()
    for name, lines in (("tables", tables(record)), ("explanation", explanation(record)), ("steps", steps_table(record))):
        text = between(text, name, lines)
    PAGE.write_text(text)


def between(text: str, name: str, lines: list[str]) -> str:
    """A text with the lines between the marks ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    _, also, tail = rest.partition(end)
    if not found or not also:
        raise SystemExit(f"the page has no marks {begin} and {end}: put them where the {name} belong")
    return "\n".join([head + begin, "", *lines, "", end + tail])


def value(found: list[float] | None, digits: int = 1, scale: float = 1.0) -> str:
    """A measure with the half width of its interval."""
    if found is None:
        return ""
    return f"{found[0] * scale:.{digits}f} ± {(found[2] - found[1]) / 2 * scale:.{digits}f}"


def plain(name: str) -> bool:
    """Whether a method stands in the main table; numbers of steps have one of their own."""
    return " step" not in name


def tables(record: dict[str, Any]) -> list[str]:
    """A table for each data set."""
    made = f"`{record['command']}` at {str(record['commit'])[:12]}, {record['created'][:10]}"
    out = [f"Measured by {made}; the record is `benchmarks/records/editing.json`."]
    for data in ORDER:
        if data not in record["measured"]:
            continue
        part = record["measured"][data]
        similar = any("ssim" in m for task in part["tasks"].values() for m in task["methods"].values())
        out += ["", f"### {TITLES[data]}", ""]
        found, others = 100 * part["originals"]["accuracy"], part["originals"]["frechet of as many other pictures"]
        out.append(
            f"{part['pictures']} pictures. The classifier finds the class of {found:.1f} % of the originals; as many other "
            f"pictures have a distance of {others:.1f} from them."
        )
        out += ["", "| | PSNR, dB |" + (" SSIM |" if similar else "") + " Fréchet distance | class found, % |"]
        out.append("|---|---|---|---|" + ("---|" if similar else ""))
        for task in part["tasks"].values():
            out.append(f"| **{task['title']}** | | |" + (" | |" if similar else " |"))
            for name, m in task["methods"].items():
                if plain(name):
                    shown = f"**{name}**" if m["kind"] == "ours" else name
                    ssim = f" {value(m.get('ssim'), 2)} |" if similar else ""
                    rest = f" {value(m['frechet'])} | {value(m['accuracy'], 0, 100)} |"
                    out.append(f"| {shown} | {value(m['psnr'])} |{ssim}{rest}")
    return out


def steps_table(record: dict[str, Any]) -> list[str]:
    """How the measures change with the number of network calls."""
    out = ["| | network calls | PSNR, dB | Fréchet distance | class found, % |", "|---|---|---|---|---|"]
    for data in ORDER:
        for task in record["measured"].get(data, {"tasks": {}})["tasks"].values():
            rows = {steps_of(name): m for name, m in task["methods"].items() if not plain(name)}
            if not rows:
                continue
            rows[DEFAULT] = own(task)
            for steps in sorted(rows):
                m = rows[steps]
                cells = (f"{TITLES[data].split(',')[0]}: {task['title']}", str(steps), value(m["psnr"]), value(m["frechet"]))
                out.append("| " + " | ".join([*cells, value(m["accuracy"], 0, 100)]) + " |")
    return out


def steps_of(name: str) -> int:
    """The number of steps that a method's name ends with."""
    return int(name.rsplit(", ", 1)[1].split()[0])


def own(task: dict[str, Any]) -> dict[str, Any]:
    """One edit of each picture with the default steps."""
    found: dict[str, Any] = next(m for m in task["methods"].values() if m["kind"] == "ours")
    return found


def best(task: dict[str, Any], kind: str, measure: str, most: bool) -> tuple[str, dict[str, Any]]:
    """The best method of a kind."""
    found = [(name, m) for name, m in task["methods"].items() if m["kind"] == kind]
    return (max if most else min)(found, key=lambda item: item[1][measure][0])


def beats(task: dict[str, Any], measure: str, kind: str = "simple") -> bool:
    """Whether one edit has a better value than every baseline of a kind."""
    most = measure != "frechet"
    mine, theirs = own(task)[measure][0], best(task, kind, measure, most)[1][measure][0]
    return bool(mine > theirs if most else mine < theirs)


def explanation(record: dict[str, Any]) -> list[str]:
    """What the tables say, in sentences whose numbers come from the record."""
    out: list[str] = []
    for data in ORDER:
        if data not in record["measured"]:
            continue
        entries: dict[str, Any] = record["measured"][data]["tasks"]
        compared = {key: task for key, task in entries.items() if "gain" in own(task) and key != "stroke"}
        won = [key for key, task in compared.items() if own(task)["gain"]["psnr"][1] > 0]
        lost = [key for key, task in compared.items() if own(task)["gain"]["psnr"][2] < 0]
        closer = [key for key, task in compared.items() if beats(task, "frechet")]
        surer = [key for key, task in compared.items() if beats(task, "accuracy")]
        nearer, clearer, closest = (
            listed([key for key, task in compared.items() if beats(task, measure, "linear")], compared)
            for measure in ("frechet", "accuracy", "psnr")
        )
        out += [
            f"**{TITLES[data]}.** Against the best simple baseline of each of {len(compared)} tasks, one edit is nearer to the "
            f"originals as a set (Fréchet distance) in {listed(closer, compared)}; its class is recognised more often in "
            f"{listed(surer, compared)}; it is nearer to the original pixel by pixel in {listed(won, compared)} and farther in "
            f"{listed(lost, compared)} (the interval of the difference leaves 0 out).",
            f"Against the best linear guess it is nearer as a set in {nearer}, its class is found more often in {clearer}, and "
            f"it is nearer pixel by pixel in {closest}.",
            "",
        ]
        for task in entries.values():
            if line := " ".join(part for part in (spread(task), with_steps(task)) if part):
                out += [line, ""]
    return out[:-1]


def spread(task: dict[str, Any]) -> str:
    """How the squared error of an edit divides into the scatter of edits and what is left of infinitely many."""
    name = f"mean of {AVERAGED} edits"
    if name not in task["methods"]:
        return ""
    one, mean = own(task)["rms"][0] ** 2, task["methods"][name]["rms"][0] ** 2
    scatter = (one - mean) / (1 - 1 / AVERAGED)
    left = max(one - scatter, 1e-9)
    linear = task["methods"].get("best linear guess")
    several = task["methods"][name]["psnr"][0]
    against = f", the best linear guess {linear['psnr'][0]:.1f} dB" if linear else ""
    return (
        f"*{task['title']}*: {100 * scatter / one:.0f} % of the squared error of one edit is the scatter of edits among each "
        f"other (it would be half for draws from the right distribution). One edit has {own(task)['psnr'][0]:.1f} dB, the "
        f"mean of {AVERAGED} {several:.1f} dB, that of infinitely many would have {base.psnr(left):.1f} dB{against}."
    )


def with_steps(task: dict[str, Any]) -> str:
    """How often the class is found with few steps and with many."""
    rows = {steps_of(name): m for name, m in task["methods"].items() if not plain(name)}
    if not rows:
        return ""
    rows[DEFAULT] = own(task)
    shown = [f"{100 * rows[steps]['accuracy'][0]:.0f} % with {steps}" for steps in sorted({min(rows), DEFAULT, max(rows)})]
    return f"The class is found in {', '.join(shown)} steps."


def listed(keys: list[str], of: dict[str, Any]) -> str:
    """Which of the tasks, in words."""
    if len(keys) in (0, len(of)):
        return "all" if keys else "none"
    return f"{len(keys)} ({', '.join(keys)})"


# ---- the pictures


def pictures_of(data: str, count: int) -> tuple[Held, Tensor, Tensor | None]:
    """The first held-out picture of each class, uint8, and their classes for a model that makes classes."""
    held = held_out(data)
    rows = torch.tensor([int((held.labels == k).nonzero()[0]) for k in range(count)])
    return held, held.images[rows], held.labels[rows] if held.given is not None else None


Rows = list[tuple[str, Tensor]]


def draw() -> None:
    """Write all pictures; each shows the first held-out picture of each class, none chosen."""
    held, images, labels = pictures_of("fashion", 10)
    parts: dict[str, Callable[[Held, Tensor, Tensor | None], Rows]] = {
        "inpaint": inpainted,
        "upscale": upscaled,
        "outpaint": outpainted,
        "denoise": denoised,
        "stroke": stroked,
        "variations": varied,
        "interpolate": between_two,
    }
    for name, rows in parts.items():
        write_png(PICTURES / f"editing-{name}.png", labelled_rows(rows(held, images, labels), scale=4))
        print(f"docs/pictures/editing-{name}.png", flush=True)
    write_png(PICTURES / "editing-digits.png", labelled_rows(of_digits(), scale=10))
    print("docs/pictures/editing-digits.png", flush=True)


def holes(images: Tensor, key: str) -> Tensor:
    """A mask of the benchmark for pictures: bool [N, 1, H, W]."""
    return masks(images)[key][1][:, None]


def inpainted(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """The middle, the right half, and pixels at random; two edits of the half and what smooth filling gives."""
    x = from_uint8(images)
    rows = [("original", images)]
    for key, what in (("centre", "middle"), ("half", "right half"), ("random", "at random")):
        mask = holes(images, key)
        rows.append((f"known: {what}", known_picture(images, mask)))
        rows.append(("made", rounded(inpaint(held.model, x, mask, labels=labels))))
        if key == "half":
            rows.append(("made, other noise", rounded(inpaint(held.model, x, mask, labels=labels, seed=1))))
            rows.append(("class guessed", rounded(inpaint(held.model, x, mask))))
            rows.append(("best linear guess", rounded(held.linear.fill(pictures(x), mask[:, 0].numpy()))))
    return rows


def upscaled(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """By 2 and by 4, beside bicubic interpolation."""
    x = from_uint8(images)
    rows = [("original", images)]
    for factor in (2, 4):
        small = to_averages(x, factor).clamp(-1, 1)
        side = small.shape[-1]
        rows.append((f"known: {side} x {side}", known_picture(images, factor=factor)))
        rows.append(("bicubic", rounded(base.bicubic(pictures(small), factor))))
        rows.append(("made", rounded(upscale(held.model, small, factor, labels=labels))))
    return [*rows, ("made, other noise", rounded(upscale(held.model, small, 4, labels=labels, seed=1)))]


def outpainted(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """The surroundings of the middle."""
    x, quarter = from_uint8(images), images.shape[-1] // 4
    middle = x[:, :, quarter:-quarter, quarter:-quarter]
    size = (images.shape[2], images.shape[3])
    return [
        ("original", images),
        ("known", known_picture(images, holes(images, "outpaint"))),
        ("made", rounded(outpaint(held.model, middle, size, labels=labels))),
        ("made, other noise", rounded(outpaint(held.model, middle, size, labels=labels, seed=1))),
    ]


def denoised(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """Two noise levels, beside total variation."""
    x = from_uint8(images)
    rows = [("original", images)]
    for sigma in (0.3, 0.6):
        noisy = x + sigma * normal(0, torch.arange(len(x)), tuple(x.shape[1:]), Stream.EVALUATE, 2)
        rows.append((f"noise, sigma {sigma}", rounded(noisy)))
        rows.append(("total variation", rounded(base.total_variation(pictures(noisy), 0.4 * sigma))))
        rows.append(("made", rounded(denoise(held.model, noisy, sigma, labels=labels))))
    return rows


def stroked(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """Three shades in coarse patches, from the default level and from a lower one."""
    sketch = strokes(images)
    return [
        ("original", images),
        ("strokes", rounded(sketch)),
        ("made", rounded(stroke(held.model, sketch, labels=labels))),
        ("made, sigma 2", rounded(stroke(held.model, sketch, labels=labels, sigma=2.0))),
    ]


def varied(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """Variations of three pictures, one of them in other classes, and a local edit."""
    x = from_uint8(images)
    names = held.model.labels
    rows = []
    for i in (3, 7, 8):
        label = None if labels is None else int(labels[i])
        made = variations(held.model, x[i], n=9, labels=label)
        rows.append((names[i], torch.cat([images[i : i + 1], rounded(made)])))
    other = variations(held.model, x[2], n=10, sigma=8.0, steps=3, labels=list(range(10)))
    rows.append(("Pullover, as each class", rounded(other)))
    mask = torch.zeros(images.shape[2:], dtype=torch.bool)
    mask[14:, :] = True
    rows.append(("original", images))
    rows.append(("kept", known_picture(images, mask)))
    rows.append(("lower half changed", rounded(local(held.model, x, mask, labels=labels))))
    return rows


def between_two(held: Held, images: Tensor, labels: Tensor | None) -> Rows:
    """From one held-out picture to another of its class, through the noise they come from."""
    rows = []
    for k in (0, 3, 9):
        both = held.images[(held.labels == k).nonzero()[:2, 0]]
        z = invert(held.model, from_uint8(both), labels=k if labels is not None else None)
        made = interpolate(held.model, z[0], z[1], 8, labels=k if labels is not None else None)
        name = held.model.labels[k] if held.model.labels else str(k)
        rows.append((name, torch.cat([both[:1], rounded(made), both[1:]])))
    return rows


def of_digits() -> Rows:
    """Every task on digits."""
    held, images, _ = pictures_of("digits", 10)
    x, mask = from_uint8(images), holes(images, "half")
    small = to_averages(x, 2)
    noisy = x + 0.6 * normal(0, torch.arange(10), tuple(x.shape[1:]), Stream.EVALUATE, 2)
    sketch = strokes(images)
    out = holes(images, "outpaint")
    return [
        ("original", images),
        ("known", known_picture(images, mask)),
        ("made", rounded(inpaint(held.model, x, mask))),
        ("made, other noise", rounded(inpaint(held.model, x, mask, seed=1))),
        ("known", known_picture(images, out)),
        ("made", rounded(inpaint(held.model, x, out))),
        ("known: 4 x 4", known_picture(images, factor=2)),
        ("made", rounded(upscale(held.model, small, 2))),
        ("noise, sigma 0.6", rounded(noisy)),
        ("made", rounded(denoise(held.model, noisy, 0.6))),
        ("strokes", rounded(sketch)),
        ("made, sigma 2", rounded(stroke(held.model, sketch, sigma=2.0))),
    ]
