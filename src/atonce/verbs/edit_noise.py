"""The verbs ``edit ...`` that go through noise: stroke, variations, local, denoise, interpolate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from atonce.core.errors import InputError
from atonce.verbs.edit import Options, made
from atonce.verbs.edit_run import COMMON, DRAWN, Common, Drawn, Watch, finish, given, open_job, open_model, read_labels

CommonOptions = Annotated[Common, arg(name="", prefix_name=False)]
_EIGHT = Drawn(n=8)


def stroke(model: Positional[str], image: Positional[Path], sigma: float | None = None, how: Options = DRAWN) -> int:
    """Turn a sketch of coarse strokes into an image: noise is added to it and taken away again.

    Example: atonce edit stroke digits sketch.png --sigma 2 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size, or an npz (arr_0: N H W C) for many at once.
        sigma: First noise level, from black to white is 2; more keeps less of the sketch. Default 10.8 times sigma_data.
        how: The options that all edits share.

    Returns:
        The exit status.
    """
    from atonce.editing.renoise import stroke as function

    job = open_job(model, image, how)
    return made("stroke", model, job, how, function, (), [("input", job.pictures.images)], given(sigma=sigma))


def variations(model: Positional[str], image: Positional[Path], sigma: float | None = None, how: Options = _EIGHT) -> int:
    """Make images that are like a given one; with --labels of another class they turn into it.

    Example: atonce edit variations digits in.png --n 8 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size, or an npz (arr_0: N H W C) for many at once.
        sigma: First noise level, the amount of change; from black to white is 2. Default 2 times sigma_data.
        how: The options that all edits share.

    Returns:
        The exit status.
    """
    from atonce.editing.renoise import variations as function

    job = open_job(model, image, how)
    single = dataclasses.replace(job, x=job.x[:: how.n])  # the function makes several of each itself
    return made("variations", model, single, how, function, (), [("input", job.pictures.images)], given(sigma=sigma, n=how.n))


def local(
    model: Positional[str],
    image: Positional[Path],
    mask: Path | None = None,
    sigma: float | None = None,
    how: Options = DRAWN,
) -> int:
    """Change a picture inside a mask only, keeping its coarse content there; all other pixels keep their bytes.

    Example: atonce edit local digits in.png --mask mask.png --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size, or an npz (arr_0: N H W C) for many at once.
        mask: Picture of the same size, white where the image may change; default: where it is transparent.
        sigma: First noise level, the amount of change; from black to white is 2. Default 4 times sigma_data.
        how: The options that all edits share.

    Returns:
        The exit status.

    Raises:
        InputError: There is no mask, or something does not fit.
    """
    from atonce.editing.renoise import local as function
    from atonce.reports.edit_pictures import known_picture

    job = open_job(model, image, how, mask=mask, masked=True)
    if job.mask is None:
        raise InputError(f"nothing says where {image} may change: give --mask MASK.png, white where it may")
    images = job.pictures.images
    before = [("input", images), ("kept", known_picture(images, job.mask))]
    return made("local", model, job, how, function, (job.mask.to(job.x.device),), before, given(sigma=sigma))


def denoise(model: Positional[str], image: Positional[Path], sigma: float | None = None, how: CommonOptions = COMMON) -> int:
    """Take white noise away from a picture, in one network call.

    Example: atonce edit denoise digits noisy.png --sigma 0.3 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size, or an npz (arr_0: N H W C) for many at once.
        sigma: Standard deviation of the noise, where from black to white is 2; default: estimated from the image, which is too
            low where much of the noise was cut off at black or white.
        how: The options that all edits share.

    Returns:
        The exit status.
    """
    from atonce.editing.noise import denoise as function
    from atonce.editing.noise import estimate_sigma

    job = open_job(model, image, how)
    x = job.x
    with Watch("denoising", len(x)) as watch:
        results = function(job.model, x, sigma, callback=watch, **job.options)
    levels = [sigma] if sigma is not None else estimate_sigma(x).clamp(max=job.model.sigma_max).tolist()
    said = f"noise of sigma {min(levels):.3g}" + (f" to {max(levels):.3g}" if len(levels) > 1 else "")
    said += "" if sigma is not None else ", estimated"
    facts = {"sigma": levels, "estimated": sigma is None, "calls": watch.calls, "labels": watch.labels or None}
    return finish("denoise", model, how, results, [("input", job.pictures.images)], 1, facts, said)


def interpolate(
    model: Positional[str],
    images: Positional[tuple[Path, ...]] = (),
    seeds: tuple[int, int] | None = None,
    n: int = 8,
    iterations: int = 200,
    how: CommonOptions = COMMON,
) -> int:
    """Make the images between two: between two pictures, whose noise is searched for, or between two seeds.

    Example: atonce edit interpolate digits --seeds 1 2 --n 8 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        images: Two PNG, JPEG or WebP of the model's size.
        seeds: Two seeds of the noise, instead of pictures: the ends are what `atonce sample --n 1 --seed` makes of them.
        n: Images in all, both ends included.
        iterations: Steps of the search for the noise of a picture; there are two searches from different starts.
        how: The options that all edits share. Of two --labels the first half of the images gets the first.

    Returns:
        The exit status.

    Raises:
        InputError: There are not two ends, or something does not fit.
    """
    import torch

    from atonce.core.streams import Stream, normal
    from atonce.editing.classes import edit_labels
    from atonce.editing.latent import interpolate as function

    if (len(images) == 2) == (seeds is not None) or len(images) not in (0, 2):
        raise InputError(
            f"{len(images)} pictures and {'two' if seeds else 'no'} seeds are given: give two pictures, or --seeds A B"
        )
    if n < 2:
        raise InputError(f"n is {n}, must be at least 2: both ends are counted")
    opened = open_model(model, how.device)
    labels = read_labels(opened, how.labels, 2, 1)
    before: list[tuple[str, Any]] = []
    facts: dict[str, Any] = {"calls": 1}
    said = "one network call each"
    if seeds is not None:
        _places(how, opened.shape, n, [])
        edit_labels(opened, labels, 2, how.guidance)
        z_a, z_b = (normal(seed, torch.tensor([0]), opened.shape, Stream.SAMPLE, 0)[0].to(opened.device) for seed in seeds)
        facts["seeds"] = list(seeds)
    else:
        (z_a, z_b), labels, before, errors = _noises(opened, images, how, n, iterations, labels)
        facts["error"] = errors
        said += f"; the pictures come back with an error of {max(errors):.3g} (root mean square, from black to white is 2)"
    facts["labels"] = labels
    first, last = labels if isinstance(labels, list) else (labels, labels)
    options = given(guidance=how.guidance, batch=how.batch)
    ends = [function(opened, z_a, z_b, n, labels=label, **options) for label in (first, last)]
    half = (n + 1) // 2
    return finish("interpolate", model, how, torch.cat([ends[0][:half], ends[1][half:]]), before, n, facts, said)


def _places(how: Common, shape: tuple[int, int, int], n: int, inputs: list[Path]) -> None:
    from atonce.verbs.edit_files import check_out, check_picture

    check_out(how.out, shape, n, inputs)
    if how.before_after is not None:
        check_picture(how.before_after, inputs)


def _noises(
    opened: Any, images: tuple[Path, ...], how: Common, n: int, iterations: int, labels: Any
) -> tuple[tuple[Any, Any], Any, list[tuple[str, Any]], list[float]]:
    """The noises of two pictures, their classes, the pictures for before and after, and what the search left over."""
    import torch

    from atonce.core.images import from_uint8
    from atonce.editing.classes import labels_of
    from atonce.editing.inputs import whole
    from atonce.editing.latent import invert_with_info
    from atonce.verbs.edit_files import read_pictures

    channels, side, _ = opened.shape
    read = [read_pictures(path, channels, side, how.fit).images for path in images]
    if any(len(one) != 1 for one in read):
        raise InputError("an npz of several images is given: interpolation takes two single pictures")
    _places(how, opened.shape, n, list(images))
    x = from_uint8(torch.cat(read)).to(opened.device)
    whole(iterations, "iterations", 1)
    found = labels_of(opened, labels, x, first=0, seed=0, guidance=how.guidance, batch=len(x))
    with Watch("searching for the noise", 2 * iterations, unit="steps") as watch:

        def step(info: dict[str, Any]) -> None:
            if "step" in info:
                watch.at(info["step"] + 1, f"error {info['error']:.3g}")

        z, what = invert_with_info(opened, x, iterations=iterations, labels=found, guidance=how.guidance, callback=step)
    classes = None if found is None else found.tolist()
    return (z[0], z[1]), classes, [("first", read[0]), ("last", read[1])], list(what.error)
