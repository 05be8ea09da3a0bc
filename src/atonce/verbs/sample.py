"""The verb ``sample``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

import atonce
from atonce.core.choices import class_numbers
from atonce.core.errors import InputError
from atonce.verbs.output import show

if TYPE_CHECKING:
    from atonce.sampling.ode import Churn

_WEEK = 7 * 24 * 3600.0  # processes that are done wait for the slowest; one that dies is noticed at once


def sample(
    model: Positional[str],
    n: Annotated[int | None, arg(aliases=["-n"])] = None,
    steps: int = 1,
    seed: int = 0,
    seeds: tuple[int, ...] = (),
    first: int = 0,
    labels: tuple[str, ...] = (),
    sigmas: tuple[float, ...] = (),
    sampler: Literal["auto", "restart", "heun", "euler"] = "auto",
    guidance: float | None = None,
    ema: str | None = None,
    churn: float | None = None,
    churn_min: float | None = None,
    churn_max: float | None = None,
    churn_noise: float | None = None,
    batch: int | None = None,
    device: str = "auto",
    out: Path = Path("samples.png"),
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Generate images: a grid, one file each, a zip or an array; stopped or killed, the same command continues.

    Example: atonce sample digits --n 64 --out samples.png

    Under torchrun, which wants -n for --n, the processes share the images, and the result is that of one process:
    torchrun --standalone --nproc_per_node=2 -m atonce sample digits -n 50000 --out samples.npz. By hand, commands with --first
    can each make a part of one folder.

    Args:
        model: Gallery name, run folder, model folder or hub id.
        n: Number of images; default: as many as labels or seeds are given, else 64.
        steps: Intervals; a consistency model makes one network call for each.
        seed: Seed of the noise, and of the classes where none are given.
        seeds: One seed for each image, instead of --seed.
        first: Index of the first image: image 500 is the same in every command that makes it.
        labels: Class of the images, by number or name: one for all, or one for each.
        sigmas: Starting noise levels, instead of the default ones.
        sampler: restart for consistency models, heun or euler for denoisers.
        guidance: Scale of classifier-free guidance, for class-conditional models that know it; 1 is none.
        ema: Name of another set of weights in the model.
        churn: For denoisers: how much fresh noise the solver adds over all steps (EDM's S_churn; 40 is usual at 256 steps).
        churn_min: Lowest noise level at which it does (S_min); default 0.
        churn_max: Highest noise level at which it does (S_max); default: all.
        churn_noise: Standard deviation of that noise (S_noise); default 1.
        batch: Images computed at once, and kept at once; default 64, on a GPU 256.
        device: auto, cpu, cuda or cuda:N.
        out: A grid (.png or lossless .webp), a folder of PNGs, a .zip of PNGs (EDM's form, with dataset.json), or an .npz
            (ADM's form: arr_0 N H W C, and arr_1 with the classes).
        quiet: Show no progress.
        json: Print the result as JSON.

    Returns:
        The exit status: 130 where it was stopped before the end.

    Raises:
        InputError: A value is out of range, or something that is not ours is in the way.
    """
    from atonce.core.distribution import join_world
    from atonce.reports.bulk import generate
    from atonce.reports.job import Job
    from atonce.training.options import pick_device
    from atonce.training.stopping import stop_requests

    if n is None:
        n = len(seeds) or (len(labels) if len(labels) > 1 else 64)
    if n < 1:
        raise InputError(f"n is {n}, must be at least 1")
    with stop_requests() as stop:
        opened = atonce.load(model)
        job = Job(
            n=n,
            first=first,
            seed=seed,
            seeds=seeds or None,
            labels=class_numbers(labels, opened.labels),
            steps=steps,
            sigmas=sigmas or None,
            sampler=sampler,
            guidance=guidance,
            ema=ema,
            batch=batch,
            churn=_churn(churn, churn_min, churn_max, churn_noise),
        )
        world = join_world(pick_device(device), timeout=_WEEK)
        made = generate(opened.to(world.device), job, out, world=world, stop=stop, quiet=quiet)
    if not made.finished:
        if world.is_main:
            state = f"stopped at {made.images:,} of {n:,} images" if world.size == 1 else "stopped"
            print(f"atonce: {state}; the same command continues: {out}", file=sys.stderr)
        return 130
    if world.is_main:
        new = n - made.found
        facts = {
            "out": str(out),
            "n": n,
            "steps": steps,
            "calls": made.calls,
            "new": new,
            "seconds": round(made.seconds, 3),
            "images_per_second": made.rate and round(made.rate, 3),
        }
        speed = f"{made.rate:.3g} images/s" if made.rate else "all were there already"
        before = f" ({made.found:,} were there already)" if made.found and new else ""
        show(facts, f"{n:,} images{before}, {made.calls} network call{'s' * (made.calls != 1)} each, {speed}: {out}", json)
    return 0


def _churn(amount: float | None, low: float | None, high: float | None, noise: float | None) -> Churn | None:
    """The churn that is asked for, if it is."""
    from atonce.sampling.ode import Churn

    asked = {"S_min": low, "S_max": high, "S_noise": noise}
    given = {name: value for name, value in asked.items() if value is not None}
    if amount is None and given:
        raise InputError("churn_min, churn_max and churn_noise say where and how churn adds noise: give --churn too, e.g. 40")
    return None if amount is None else Churn(amount, **given)
