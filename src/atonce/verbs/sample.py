"""The verb ``sample``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

import atonce
from atonce.core.errors import InputError
from atonce.verbs.output import show


def sample(
    model: Positional[str],
    n: int = 64,
    steps: int = 1,
    seed: int = 0,
    first: int = 0,
    labels: tuple[int, ...] = (),
    sigmas: tuple[float, ...] = (),
    sampler: Literal["auto", "restart", "heun", "euler"] = "auto",
    guidance: float | None = None,
    ema: str | None = None,
    batch: int | None = None,
    device: str = "auto",
    out: Path = Path("samples.png"),
    json: bool = False,
) -> int:
    """Generate images: a grid (.png), one file each (a folder), or arrays (.npz).

    Example: atonce sample digits --n 64 --out samples.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        n: Number of images.
        steps: Intervals; a consistency model makes one network call for each.
        seed: Seed of the noise.
        first: Index of the first image.
        labels: Class of the images: one for all, or one for each.
        sigmas: Starting noise levels, instead of the default ones.
        sampler: restart for consistency models, heun or euler for denoisers.
        guidance: Scale of classifier-free guidance, for class-conditional models that know it; 1 is none.
        ema: Name of another set of weights in the model.
        batch: Images computed at once.
        device: auto, cpu, cuda or cuda:N.
        out: A .png grid, an .npz file (arr_0: N H W C), or a folder.
        json: Print the result as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value is out of range.
    """
    from atonce.core.progress import Progress
    from atonce.reports.pictures import save_samples
    from atonce.training.options import pick_device

    if n < 1:
        raise InputError(f"n is {n}, must be at least 1")
    opened = atonce.load(model).to(pick_device(device))
    calls = 0
    with contextlib.ExitStack() as shown:
        bar: Progress | None = None  # made when something happens, so that a refusal is one line

        def step(info: dict[str, Any]) -> None:
            nonlocal calls, bar
            calls = info["calls"]
            bar = bar or shown.enter_context(Progress("sampling", n, "img"))
            bar.update(info["done"])

        images = opened.sample(
            n,
            steps,
            seed,
            first=first,
            labels=list(labels) or None,
            sigmas=list(sigmas) or None,
            sampler=sampler,
            guidance=guidance,
            ema=ema,
            batch=batch,
            callback=step,
        )
    files = save_samples(images, out, first)
    facts = {"out": str(out), "n": n, "steps": steps, "calls": calls, "files": files}
    show(facts, f"{n} images, {calls} network calls each: {out}", json)
    return 0
