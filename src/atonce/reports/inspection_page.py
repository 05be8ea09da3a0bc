"""The page of an inspection: one HTML file with pictures, numbers, a sentence on how to read each and what it cannot say."""

from __future__ import annotations

import html
import json
import platform

import torch

from atonce.core.images import from_uint8
from atonce.core.version import VERSION
from atonce.reports import inspection_plots as plots
from atonce.reports.inspection import Inspection
from atonce.reports.inspection_facts import facts, record_notes, records
from atonce.reports.inspection_measures import Curve
from atonce.reports.inspection_paths import Path
from atonce.reports.inspection_strips import STYLE, capital, count_text, limit, picture, plot, reading, sigma_text, strips
from atonce.reports.page import document, figure, table
from atonce.reports.pictures import png_bytes

_PIXELS = "in units of pixels from -1 (black) to 1 (white), so black against white is 2"
_STYLE = (
    STYLE
    + """
nav { font-size: .95rem; margin: 1rem 0; } nav a { margin-right: .9rem; display: inline-block; }
a { color: inherit; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .2rem; }
.facts td { overflow-wrap: anywhere; min-width: 9rem; }
figure.grid { max-width: 32rem; } figure.map { max-width: 26rem; }
"""
)


def inspection_page(made: Inspection, name: str = "", command: str = "") -> str:
    """The page as HTML.

    Args:
        made: What was computed.
        name: What the user calls the model; the card's name comes first.
        command: The command that made the page.

    Returns:
        A whole document that needs nothing from outside.
    """
    title = str(made.model.card.get("name") or name or "a model")
    parts = [
        ("facts", "Facts", _facts(made)),
        ("samples", "Samples", _samples(made)),
        ("steps", "More steps", _ladder(made)),
        ("trajectories", "Trajectories", _trajectories(made)),
        ("teacher", "Along the teacher's trajectory", _teacher(made)),
        ("gap", "Consistency gap", _gap(made)),
        ("denoising", "Denoising", _denoising(made)),
        ("neighbours", "Nearest training images", _neighbours(made)),
        ("classes", "Classes", _classes(made)),
        ("interpolation", "Interpolation", _interpolation(made)),
        ("noise", "What the noise decides", _noise(made)),
    ]
    parts = [(key, head, body) for key, head, body in parts if body]
    links = "".join(f'<a href="#{key}">{html.escape(head)}</a>' for key, head, _ in parts)
    sections = "\n".join(f'<section id="{key}"><h2>{html.escape(head)}</h2>\n{body}</section>' for key, head, body in parts)
    description = str(made.model.card.get("description", "")) or f"A {made.model.kind} model."
    used = _data_used(made)
    made_by = f"atonce {VERSION}, torch {torch.__version__}, Python {platform.python_version()}, device {made.model.device}"
    shown = f" Made by <code>{html.escape(command)}</code>." if command else ""
    body = f"""
<header><h1>Inside {html.escape(title)}</h1>
<p class="lead">{html.escape(description)}</p>
<p class="small">{html.escape(used)} All noise comes from seed {made.seed}.</p>
<nav aria-label="Sections">{links}</nav></header>
<main>
{sections}
</main>
<footer><p>{html.escape(made_by)}.{shown} Distances are root mean squares (rms) per pixel, {_PIXELS}.</p></footer>"""
    return document(f"Inside {title}", body, _STYLE)


def _data_used(made: Inspection) -> str:
    if made.material is None:
        return (
            f"This page was made without real images: {made.missing}. The parts that need them are left out; name the "
            "training data with --data."
        )
    training, held = made.material.training, made.material.held_out
    real = (
        f"{len(held):,} held-out images of its test split"
        if made.material.unseen
        else "no held-out images: those of training stand in"
    )
    same = {
        True: "the data that the card names (the checksum agrees)",
        False: "other images than the card names, so nothing here is about its training data",
        None: "the card does not say whether these were trained on",
    }[made.material.matches]
    return f"Real images: {training.name}, {len(training):,} for training, {real}; {same}."


def _facts(made: Inspection) -> str:
    out = f'<div class="facts">{table((), facts(made))}</div>'
    if rows := records(made.model):
        head = ("metric", "value", "95 % interval", "unit", "samples n", "steps", "calls", "extractor", "reference")
        out += "<h3>Measured</h3>" + reading(
            "Numbers from the model's records. An interval says how much the value would move with other samples; values "
            "made with different extractors, references or sample counts cannot be compared."
        )
        out += table(head, rows) + "".join(f'<p class="small">{html.escape(note)}</p>' for note in record_notes(made.model))
    else:
        out += limit("The model carries no records, so nothing was measured: atonce eval makes some.")
    if recipe := made.model.card.get("recipe"):
        text = html.escape(json.dumps(recipe, indent=2))
        out += f"<details><summary>The recipe in full</summary><pre>{text}</pre></details>"
    return out


def _samples(made: Inspection) -> str:
    n, calls = len(made.samples), made.ladder[0].calls if made.steps == made.ladder[0].steps else made.ladder[-1].calls
    text = f"{n} images, not chosen, {count_text(calls, 'network call')} each."
    again = f"atonce sample MODEL --n {n} --seed {made.seed}" + (f" --steps {made.steps}" if made.steps > 1 else "")
    grid = figure(picture(made.samples), f"{text} The same as {again}.", f"A grid of {n} generated images", pixels=True)
    return (
        reading("Look for variety and for images that are nothing: both count, and a few good ones prove little.")
        + grid.replace("<figure>", '<figure class="grid">', 1)
        + limit("A grid shows what is usual. Rare failures and missing kinds need the numbers under Facts.")
    )


def _ladder(made: Inspection) -> str:
    rows = [(f"{count_text(r.steps, 'step')}, {count_text(r.calls, 'call')}", r.images) for r in made.ladder]
    changes = "; ".join(
        f"{before.steps} to {after.steps} steps {after.change:.3f}"
        for before, after in zip(made.ladder, made.ladder[1:], strict=False)
    )
    how = (
        "Each column starts from the same noise. A solver that has converged no longer changes with more steps."
        if made.model.kind == "denoiser"
        else "Each column starts from the same noise. Further steps add fresh noise at a lower level and answer again: they "
        "mend details where the level is low and choose anew where it is high."
    )
    return (
        reading(how)
        + strips(None, rows, "images from the same noises")
        + f"<p>Change from row to row, rms per pixel: {changes}.</p>"
        + limit("A large change is not a better image: whether more steps help is for a metric to say (atonce eval --steps 2).")
    )


def _trajectories(made: Inspection) -> str:
    out = reading(
        "Upper rows: the noisy state at noise level σ, scaled back to the range of the data. Lower rows: what the model "
        "makes of it. Where the answer stops changing, the image is decided."
    )
    for i, path in enumerate(made.noised):
        out += f"<h3>{html.escape(capital(path.title))}{f', {i + 1}' if len(made.noised) > 1 else ''}</h3>" + _path(
            path, "real"
        )
    if made.noised:
        out += (
            '<p class="small">At small σ the answer must be the real image itself; at the largest nothing of it is '
            "left, and the answer is "
            + ("the mean of all images" if made.model.kind == "denoiser" else "what the noise alone gives")
            + ".</p>"
        )
    for i, path in enumerate(made.ways):
        out += f"<h3>{html.escape(capital(path.title))}{f', {i + 1}' if len(made.ways) > 1 else ''}</h3>" + _path(path, "end")
    return out + limit("These are a few images and one noise each; the curves below are means over many.")


def _path(path: Path, last: str) -> str:
    head = [sigma_text(s) for s in path.sigmas] + [last]
    end = path.end[None]
    rows = [("state", torch.cat([path.states, end])), ("answer", torch.cat([path.answers, end]))]
    return strips(head, rows, f"{path.title}, over sigma", "σ")


def _teacher(made: Inspection) -> str:
    found = made.teacher
    if found is None:
        return ""
    path = found.path
    end = path.end[None]
    rows = [
        ("teacher's state", torch.cat([path.states, end])),
        ("teacher in one call", torch.cat([path.answers, end])),
        ("this model", torch.cat([found.student, end])),
    ]
    guided = f", guided with scale {found.guidance:g}" if found.guidance is not None else ""
    known = made.model.config.guidance
    if found.guidance is None and known is not None and known.form == "fixed":
        guided = (
            f", without the guidance of scale {known.scales[0]:g} that is in the model's weights, since it cannot be guided"
        )
    first, best = found.distances[0], found.estimates[0]
    numbers = (
        f"At σ = {found.sigmas[0]:g} the model is {first:.3f} ± {found.errors[0]:.3f} (rms per pixel, {found.noises} "
        f"trajectories) from where the teacher ends; the teacher itself in one call {best:.3f}."
    )
    return (
        reading(
            f"{capital(path.title)}{guided}. An exact consistency model gives the same image at every point: the end of the "
            "trajectory (last column). The teacher in one call gives the blurred mean until late."
        )
        + strips([*map(sigma_text, path.sigmas), "end"], rows, "answers along the teacher's trajectory", "σ")
        + plot(
            plots.teacher(found), "Distance to the trajectory's end over sigma, for this model and for the teacher in one call"
        )
        + f"<p>{html.escape(numbers)}</p>"
        + limit(
            f"The teacher's end is itself that of {found.steps} steps of a solver, and a student may leave it and still make "
            "good images. It must be the teacher that the model was distilled from."
        )
    )


def _gap(made: Inspection) -> str:
    if made.curves is None:
        return ""
    gap, exact = made.curves.gap, made.curves.gap_exact
    factor = gap.sigmas[1] / gap.sigmas[0]
    top = max(range(len(gap.values)), key=gap.values.__getitem__)
    numbers = (
        f"Largest at σ = {sigma_text(gap.sigmas[top])}: {gap.values[top]:.3f} ± {gap.errors[top]:.3f} from one level to the "
        f"next, a factor {factor:.2f} in σ; the Gaussian's there is {exact.values[top]:.3f}. {_above(gap, exact)}"
    )
    aim = (
        "A denoiser is not meant to be consistent: the curve shows at which noise levels its mean changes, that is, where "
        "the image is decided."
        if made.model.kind == "denoiser"
        else "The pair of consistency training: small is consistent. An exact function has a gap too, since two levels of "
        "one noise are not on one trajectory; the dashed line is that of a Gaussian with the data's mean and covariance, "
        "computed exactly on the same images and noises."
    )
    return (
        reading(f"How much the answer changes from one noise level to the next, for the same image and noise. {aim}")
        + plot(plots.gap(made.curves, made.model.kind), "Consistency gap over sigma with standard errors, beside a Gaussian's")
        + f"<p>{html.escape(numbers)} {_images_used(made)}</p>"
        + limit(
            "Real data are not Gaussian, so lying above the dashed line is no fault by itself, and lying below it can mean "
            "answers that change too little (blur). Compare models on one data set and one grid of levels."
        )
    )


def _denoising(made: Inspection) -> str:
    if made.curves is None:
        return ""
    ours, linear = made.curves.error, made.curves.error_linear
    better = [s for s, a, b in zip(ours.sigmas, ours.values, linear.values, strict=True) if a < b]
    if better:
        ratio, at = min((a / b, s) for s, a, b in zip(ours.sigmas, ours.values, linear.values, strict=True))
        numbers = (
            f"Nearer to the image than the linear estimate at {len(better)} of {len(ours.sigmas)} levels, between σ = "
            f"{sigma_text(better[0])} and {sigma_text(better[-1])}; at best {ratio:.2f} times its distance, at σ = "
            f"{sigma_text(at)}."
        )
    else:
        numbers = "At no level nearer to the image than the linear estimate."
    aim = (
        "A denoiser aims at the mean, which no estimate can beat in this measure; below the dashed line it knows more than "
        "the data's covariance."
        if made.model.kind == "denoiser"
        else "A consistency model answers with one image, not with the mean of all that fit, so at large σ it must lie "
        "above the best estimate of the mean, by a factor of up to √2; the dotted line is what an exact one does on a "
        "Gaussian."
    )
    if made.model.labels is not None:
        aim += " The model is told the class of each image, the linear estimate is not."
    return (
        reading(
            "How far the answer f(y + σz, σ) is from the image y that the noise was added to. The dashed line is the best "
            f"linear estimate. {aim}"
        )
        + plot(plots.error(made.curves), "Distance between answer and image over sigma, beside the best linear estimate")
        + f"<p>{html.escape(numbers)} {_images_used(made)}</p>"
        + limit("Distances of pixels punish a shift by one pixel and pardon blur: they do not say what looks right.")
    )


def _neighbours(made: Inspection) -> str:
    found, material = made.neighbours, made.material
    if found is None or material is None:
        return ""
    names = ("nearest", "2nd nearest", "3rd nearest")
    near = [(name, from_uint8(images)) for name, images in zip(names, found.nearest.unbind(1), strict=False)]
    rows = [("sample", from_uint8(found.samples)), *near]
    head = [f"{d:.3f}" for d in found.distances[:, 0].tolist()]
    real = "held-out images" if found.unseen else "training images (each among all the others, for want of held-out ones)"
    ours, theirs = float(found.all_samples.median()), float(found.real.median())
    ratio = found.ratio
    numbers = (
        f"Median distance to the nearest of {found.searched:,} training images: samples {ours:.3f}, {real} {theirs:.3f}"
        + (f", so a ratio of {ratio:.2f}. " if ratio is not None else ". Real images repeat each other, so there is no ratio. ")
        + f"The nearest of {len(found.all_samples):,} samples lies at {float(found.all_samples.min()):.3f}."
    )
    doubt = "" if material.matches is not False else " The images searched are not those the card names."
    return (
        reading(
            "Does the model only remember? The samples that are nearest to a training image, nearest first, each above its "
            "nearest training images. A ratio of medians well below 1 would mean copies; distances are of pixels (rms, "
            "numbers over the columns)."
        )
        + strips(head, rows, "samples and their nearest training images", "distance")
        + plot(plots.distances(found), "Histogram of distances to the nearest training image, samples beside real images")
        + f"<p>{html.escape(numbers)}</p>"
        + limit(
            "Pixels see copies, not copies that are shifted or recoloured; and blurred images are near to everything." + doubt
        )
    )


def _classes(made: Inspection) -> str:
    found, names = made.by_class, made.model.labels
    if found is None or names is None:
        return ""
    rows = [(names[i], images) for i, images in zip(found.classes, found.images, strict=True)]
    known = made.model.config.guidance
    scale = f" Guidance with scale {known.scales[0]:g} is part of the weights." if known and known.form == "fixed" else ""
    some = "" if len(found.classes) == len(names) else f" {len(found.classes)} of {len(names)} classes, evenly chosen."
    out = reading(
        "One row for each class, and the same noise in each column: what stays the same down a column comes from the "
        f"noise.{some}{scale}"
    ) + strips(None, rows, "samples of each class")
    if found.guided is not None:
        head = [names[i] if len(found.classes) <= 10 else str(i) for i in found.classes]
        scaled = [(f"scale {s:g}", images) for s, images in zip(found.scales, found.guided, strict=True)]
        out += "<h3>Guidance</h3>" + reading(
            "The same noise at several scales of guidance (1 is none): larger ones make clearer, more alike images."
        )
        out += strips(head, scaled, "samples of each class at several scales of guidance")
    return out + limit("Whether an image is of its class is for a classifier to say; a record's label_accuracy does.")


def _interpolation(made: Inspection) -> str:
    found, names = made.interpolation, made.model.labels
    rows = [
        (names[found.labels[i]] if names and found.labels else f"pair {i + 1}", images) for i, images in enumerate(found.images)
    ]
    even = float(found.jumps.mean())
    numbers = f"Change between neighbours, rms per pixel: {even:.3f} in the mean, {float(found.jumps.max()):.3f} at most."
    return (
        reading(
            "From one noise to another along the arc between them. Smooth change means that the noise is a coordinate of "
            "images; a sudden jump is a border between two kinds."
        )
        + strips(None, rows, "images between two noises")
        + f"<p>{numbers}</p>"
        + limit("Images between two good ones need not be good: the data may have nothing there.")
    )


def _noise(made: Inspection) -> str:
    found = made.sensitivity
    influence, count = found.influence, len(found.regions)
    numbers = (
        f"{found.inside:.0%} of the squared change falls inside the region itself ({1 / count:.0%} if it were spread "
        f"evenly). One region changes the image by {float(influence.min()):.3f} to {float(influence.max()):.3f} (rms per "
        f"pixel), a mean over {found.noises} images."
    )
    maps = figure(
        png_bytes(plots.noise_map(found)),
        "One picture for each region, in its place: brighter where the image changes more.",
        f"{count} heat maps of where the image changes when one region of the noise is drawn anew",
        pixels=True,
    )
    return (
        reading(
            "One region of the noise (framed) is drawn anew, everything else stays. Light inside the frame: this noise "
            "decides the image there. Light elsewhere: it decides what the whole image is."
        )
        + maps.replace("<figure>", '<figure class="map">', 1)
        + f"<p>{html.escape(numbers)}</p>"
        + limit("Redrawing is a large change, not a derivative; regions that matter only together do not show.")
    )


def _images_used(made: Inspection) -> str:
    assert made.material is not None
    assert made.curves is not None
    held = "held-out" if made.material.unseen else "training"
    fitted = "its whole covariance" if made.full_covariance else "a covariance that is diagonal in spatial frequencies"
    return f"Means over {made.curves.images} {held} images, with standard errors over them; the Gaussian has {fitted}."


def _above(ours: Curve, exact: Curve) -> str:
    above = [s for s, a, b in zip(ours.sigmas, ours.values, exact.values, strict=True) if a > b]
    if not above:
        return "Nowhere above the Gaussian's."
    where = f"between σ = {sigma_text(above[0])} and {sigma_text(above[-1])}"
    return f"Above the Gaussian's at {len(above)} of {len(ours.sigmas)} levels, {where}."
