"""The demo's page: one self-contained HTML file that explains to a newcomer what was seen, with the numbers of the run."""

from __future__ import annotations

import html
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from atonce.core.progress import format_duration
from atonce.core.version import VERSION
from atonce.evaluation.digits import COUNT, LIMITS, DigitsVerdict
from atonce.reports.page import document, figure
from atonce.reports.plots import grid_stages
from atonce.training.recipe import Recipe


@dataclass(frozen=True)
class DemoFacts:
    """What the page and the terminal say about a run.

    Attributes:
        folder: The run folder; its pictures are put into the page.
        recipe: The resolved recipe.
        verdict: What the judge found.
        images_seen: Images seen in training.
        seconds: Seconds of training.
        parameters: Weights of the network.
    """

    folder: Path
    recipe: Recipe
    verdict: DigitsVerdict
    images_seen: int
    seconds: float
    parameters: int


def demo_page(facts: DemoFacts) -> str:
    """The page as HTML.

    Args:
        facts: The run; the pictures that :func:`atonce.reports.demo.judge_run` makes must be in its folder.

    Returns:
        A whole document that needs nothing from outside.
    """
    recipe, verdict = facts.recipe, facts.verdict
    stages = ", ".join(str(n) for _, n in grid_stages(recipe))
    rate = facts.images_seen / facts.seconds if facts.seconds else 0.0
    shortfalls = verdict.shortfalls("demo")
    outcome = (
        "All limits of this demo are kept."
        if not shortfalls
        else "This run missed a limit: " + html.escape("; ".join(shortfalls)) + "."
    )
    body = f"""
<header>
<h1>Handwritten digits in one step</h1>
<p class="lead">This machine saw {facts.images_seen:,} noisy digits in {
        format_duration(facts.seconds)
    } and learnt to turn pure noise
into a digit with a single network call. {outcome}</p>
</header>
<main>
{
        _figure(
            facts.folder,
            "samples.png",
            "Left: 64 digits that the network made, one call each, not chosen. Right: 64 real ones.",
            "A grid of 64 generated digits beside a grid of 64 real digits",
            pixels=True,
        )
    }
<section><h2>What a consistency model is</h2>
<p>A diffusion model starts from noise and takes it away in many small steps, following a path from noise to image; each step is one call
of a large network. A <em>consistency model</em> is a function f(x, σ) that is given any point x of such a path, at noise level σ, and answers
with the path's end: the image. Asked at the very start, at pure noise (σ = {
        recipe.sigma_max:g}), it makes an image in one call.</p>
<p>It is trained without a diffusion model to copy from. Take a real digit, add the same noise at two neighbouring levels, and ask that both
answers agree; at the lowest level (σ = {
        recipe.sigma_min:g}) the answer is fixed to be the input itself. Agreement then spreads from the clean end to
the noisy one. The recipe here is improved consistency training (iCT): the noise levels lie on a grid of N points, and N grows during training
({stages}), coarse and fast first, fine and accurate later.</p></section>
<section><h2>How good is it?</h2>
<p>{
        verdict.samples:,} samples were judged, as many as there are real digits. Nothing was trained on the held-out fifth of the digits.</p>
<div class="wide">{_table(verdict)}</div>
<p><b>R</b> compares the Fréchet distance between the samples and all {
        COUNT:,} digits (in pixels) with the distance between two random halves of the
real digits: 1 means as far from the digits as they are from themselves, a perfect sampler would be near 0.5. <b>Confidence</b> is the share of
samples that a support vector classifier recognises with more than 90 % certainty, relative to real digits it has not seen; the strict classifier, which
is never sure of noise, gives {
        verdict.strict_confidence:.2f}. A <b>neighbour ratio</b> near zero would mean that the samples are copies of training images.</p></section>
<section><h2>More calls, if you like</h2>
<p>One call can be traded for two: add a little noise to the result and ask again.</p>
{
        _figure(
            facts.folder,
            "samples-two-steps.png",
            "The same noise, one call and two.",
            "A row of digits made in one step above the same in two steps",
            pixels=True,
        )
    }
</section>
<section><h2>What happened during training</h2>
{
        _figure(
            facts.folder,
            "quality.png",
            "Distance to the real digits, from fixed noise, while training went on: this is the curve to watch.",
            "Frechet distance falling over the images seen",
        )
    }
{
        _figure(
            facts.folder,
            "loss.png",
            "The loss says little here: each time N grows the pairs move closer together, so the distance of a pair drops, "
            "while the weight 1/(σ' - σ) grows.",
            "Loss and pair distance over the images seen, with steps where N doubles",
        )
    }
{
        _figure(
            facts.folder,
            "curriculum.png",
            "How fine the grid is over time, and which noise levels are trained how often: mostly the middle, "
            "where the picture is decided.",
            "Number of grid points over time, and the distribution of noise levels",
        )
    }
{
        _figure(
            facts.folder,
            "by-sigma.png",
            "Pair distance, loss and gradient by noise level.",
            "Heat maps of pair distance and loss by noise level over time, and gradient norms by noise level",
        )
    }
</section>
<section><h2>What this does not show</h2>
<p>These are 8x8 pixels and a run of minutes on a small network ({
        facts.parameters:,} weights). It shows that the method works and that this
machine can run it. It says nothing about large colour images, which need the paper's networks and hundreds of millions of images. R is measured in pixels and is
not the FID of papers.</p></section>
<section><h2>Make your own</h2>
<pre>atonce sample {html.escape(str(facts.folder))} --n 64 --steps 2 --out samples.png
atonce data inspect YOUR_FOLDER --size 32
atonce train ict --data YOUR_FOLDER --size 32 --out runs/mine</pre></section>
<section><h2>The run</h2>
<div class="wide"><table>
<tr><th scope="row">training</th><td>{facts.images_seen:,} images in {format_duration(facts.seconds)}, {
        rate:,.0f} images a second</td></tr>
<tr><th scope="row">machine</th><td>{html.escape(_machine())}</td></tr>
<tr><th scope="row">data</th><td>1,437 of the 1,797 digits of scikit-learn (8x8, grey)</td></tr>
<tr><th scope="row">recipe</th><td><code>{recipe.digest()[:16]}</code></td></tr>
<tr><th scope="row">versions</th><td>atonce {VERSION}, torch {torch.__version__}, Python {platform.python_version()}</td></tr>
</table></div>
<details><summary>The recipe in full</summary><pre>{
        html.escape(json.dumps(recipe.as_dict(), indent=2))
    }</pre></details></section>
</main>
<footer><p>Consistency models: Song et al., 2023. iCT: Song and Dhariwal, 2023. The numbers are in <code>record.json</code>, the curves in
<code>log.jsonl</code>.</p></footer>"""
    return document("Handwritten digits in one step", body)


def _figure(folder: Path, name: str, caption: str, alt: str, pixels: bool = False) -> str:
    return figure((folder / name).read_bytes(), caption, alt, pixels)


def _table(verdict: DigitsVerdict) -> str:
    limits = LIMITS["demo"]
    low, high = limits.share
    shares = verdict.class_shares
    rows = [
        ("R", f"{verdict.ratio:.3f}", f"at most {limits.ratio:g}", verdict.ratio <= limits.ratio),
        ("confidence", f"{verdict.confidence:.3f}", f"at least {limits.confidence:g}", verdict.confidence >= limits.confidence),
        (
            "share of each class",
            f"{min(shares):.1%} to {max(shares):.1%}",
            f"{low:.0%} to {high:.0%}",
            low <= min(shares) and max(shares) <= high,
        ),
        (
            "neighbour ratio",
            f"{verdict.neighbour_ratio:.3f}",
            f"at least {limits.neighbours:g}",
            verdict.neighbour_ratio >= limits.neighbours,
        ),
    ]
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td class="number">{value}</td><td>{limit}</td>'
        f'<td class="{"kept" if kept else "missed"}">{"kept" if kept else "missed"}</td></tr>'
        for name, value, limit, kept in rows
    )
    head = '<tr><th scope="col">measure</th><th scope="col">this run</th><th scope="col">limit</th><th scope="col"></th></tr>'
    return f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def _machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}"
