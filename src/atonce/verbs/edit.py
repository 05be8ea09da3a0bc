"""The verbs ``edit ...`` that start from what is known of a picture: inpaint, outpaint, colorize, upscale, restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from atonce.core.errors import InputError
from atonce.verbs.edit_run import DRAWN, Drawn, Job, Watch, finish, open_job, open_model, steps_of

if TYPE_CHECKING:
    from torch import Tensor

Options = Annotated[Drawn, arg(name="", prefix_name=False)]
"""The options of :class:`~atonce.verbs.edit_run.Drawn` as options of the verb itself."""


def inpaint(model: Positional[str], image: Positional[Path], mask: Path | None = None, how: Options = DRAWN) -> int:
    """Make the pixels of a mask anew; all others keep their bytes.

    Example: atonce edit inpaint digits in.png --mask mask.png --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size, or an npz (arr_0: N H W C) for many at once.
        mask: Picture of the same size, white where pixels are to be made; default: where the image is transparent.
        how: The options that all edits share.

    Returns:
        The exit status.

    Raises:
        InputError: Nothing says what is to be made, or something does not fit.
    """
    from atonce.editing.tasks import inpaint as function
    from atonce.reports.edit_pictures import known_picture

    job = open_job(model, image, how, mask=mask, masked=True)
    if job.mask is None:
        raise InputError(
            f"nothing says what of {image} is to be made: give --mask MASK.png (white where pixels are to be made), or make "
            "those pixels transparent"
        )
    images = job.pictures.images
    before = [("input", images), ("known", known_picture(images, job.mask))]
    return made("inpaint", model, job, how, function, (job.mask.to(job.x.device),), before)


def outpaint(
    model: Positional[str],
    image: Positional[Path],
    size: tuple[int, int] | None = None,
    place: tuple[int, int] | None = None,
    how: Options = DRAWN,
) -> int:
    """Make the surroundings of a picture; its own pixels keep their bytes.

    Example: atonce edit outpaint digits in.png --size 12 16 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of any size up to that of the result, or an npz (arr_0: N H W C) for many at once.
        size: Height and width of the result; default the model's, larger ones are filled by overlapping windows.
        place: Row and column of the picture's upper left corner in the result; default: the middle.
        how: The options that all edits share (--fit has no meaning here).

    Returns:
        The exit status.

    Raises:
        InputError: The size or the place is out of range, or something does not fit.
    """
    import torch

    from atonce.core.images import from_uint8, to_uint8
    from atonce.editing.outpaint import outpaint as function
    from atonce.reports.edit_pictures import known_picture

    opened = open_model(model, how.device)
    height, width = size or opened.shape[1:]
    if not (0 < height <= _LARGEST and 0 < width <= _LARGEST):
        raise InputError(f"size is {height} {width}, must be height and width of at most {_LARGEST} pixels each")
    job = open_job(model, image, how, model=opened, free=True, shape=(opened.shape[0], height, width))
    images = job.pictures.images
    before = [("input", images)]
    if images.shape[2] <= height and images.shape[3] <= width:
        top, left = place or ((height - images.shape[2]) // 2, (width - images.shape[3]) // 2)
        if 0 <= top <= height - images.shape[2] and 0 <= left <= width - images.shape[3]:
            canvas = torch.zeros((len(images), images.shape[1], height, width))
            missing = torch.ones((height, width), dtype=torch.bool)
            rows, columns = slice(top, top + images.shape[2]), slice(left, left + images.shape[3])
            canvas[:, :, rows, columns], missing[rows, columns] = from_uint8(images), False
            before = [("input, in its place", known_picture(to_uint8(canvas), missing))]
    options = {"place": place or "centre"}
    return made("outpaint", model, job, how, function, ((height, width),), before, options)


def colorize(model: Positional[str], image: Positional[Path], how: Options = DRAWN) -> int:
    """Give a grey picture colours whose grey values are its own (for models that make RGB pictures).

    Example: atonce edit colorize runs/colour grey.png --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP (a coloured one becomes grey first), or an npz (arr_0: N H W C) for many at once.
        how: The options that all edits share.

    Returns:
        The exit status.

    Raises:
        InputError: The model makes grey pictures, or something does not fit.
    """
    from atonce.editing.tasks import colorize as function

    opened = open_model(model, how.device)
    if opened.shape[0] != 3:
        raise InputError(f"{model} makes grey pictures, so it knows no colours: colourising needs a model of 3 channels")
    job = open_job(model, image, how, model=opened, channels=1)
    return made("colorize", model, job, how, function, (), [("input", job.pictures.images)])


def upscale(model: Positional[str], image: Positional[Path], factor: int, how: Options = DRAWN) -> int:
    """Make a larger picture whose patch means are the pixels of a small one (super-resolution).

    Example: atonce edit upscale digits small.png --factor 2 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size divided by the factor, or an npz (arr_0: N H W C) for many at once.
        factor: How many times higher and wider the result is; it must divide the model's size.
        how: The options that all edits share.

    Returns:
        The exit status.
    """
    from atonce.editing.operators import averages
    from atonce.editing.tasks import upscale as function

    opened = open_model(model, how.device)
    averages(factor).check((1, *opened.shape))
    small = opened.shape[1] // factor
    remedy = f" ({opened.shape[1]}x{opened.shape[2]} of the model over the factor {factor})"
    job = open_job(model, image, how, model=opened, side=small, remedy=remedy)
    return made("upscale", model, job, how, function, (factor,), [("input", job.pictures.images)])


def restore(
    model: Positional[str],
    image: Positional[Path],
    mask: Path | None = None,
    grey: bool = False,
    factor: int = 1,
    either: bool = False,
    how: Options = DRAWN,
) -> int:
    """Make what is not known of a picture, for any combination of mask, grey values and patch means.

    Example: atonce edit restore digits in.png --mask mask.png --factor 2 --out out.png

    Args:
        model: Gallery name, run folder, model folder or hub id.
        image: PNG, JPEG or WebP of the model's size (or that over the factor), or an npz (arr_0: N H W C) for many at once.
        mask: Picture of the same size, white where pixels are unknown; default: where the image is transparent, if it is.
        grey: Of the colours only the grey values are known.
        factor: Only the means of patches of this side are known.
        either: What any of the given parts knows is known (grey values everywhere and the colours outside the mask, say);
            otherwise what all of them know together (grey values outside the mask).
        how: The options that all edits share.

    Returns:
        The exit status.

    Raises:
        InputError: Nothing says what is known, or something does not fit.
    """
    from atonce.editing.operators import averages, pixels
    from atonce.editing.operators import grey as greys
    from atonce.editing.tasks import restore as function
    from atonce.reports.edit_pictures import known_picture

    opened = open_model(model, how.device)
    averages(factor).check((1, *opened.shape))
    if grey and opened.shape[0] != 3:
        raise InputError(f"--grey is given, but {model} makes grey pictures: leave it out")
    job = open_job(model, image, how, mask=mask, masked=True, model=opened, factor=factor)
    parts = [] if job.mask is None else [pixels(job.mask.to(job.x.device))]
    parts += ([greys()] if grey else []) + ([averages(factor)] if factor > 1 else [])
    if not parts:
        raise InputError(f"nothing says what of {image} is known: give --mask, --grey or --factor, or transparent pixels")
    known = parts[0]
    for part in parts[1:]:
        known = known | part if either else known & part
    images = job.pictures.images
    before = [("input", images)]
    if not either or len(parts) == 1:
        before.append(("known", known_picture(images, job.mask, grey=grey, factor=factor)))
    return made("restore", model, job, how, function, (known,), before)


_LARGEST = 4096


def made(
    task: str,
    name: str,
    job: Job,
    how: Drawn,
    function: Callable[..., Tensor],
    arguments: Sequence[Any],
    before: Sequence[tuple[str, Tensor]],
    options: dict[str, Any] | None = None,
) -> int:
    """Call an edit, show how far it is, save and say what came out.

    Args:
        task: Name of the edit.
        name: The model as the user named it.
        job: What was read.
        how: The user's options.
        function: The edit.
        arguments: What it takes after model and images.
        before: Columns of the picture of before and after.
        options: What it takes besides.

    Returns:
        The exit status.
    """
    with Watch("editing", len(job.pictures.images) * how.n, steps_of(function, how)) as watch:
        results = function(job.model, job.x, *arguments, **job.options, **(options or {}), callback=watch)
    results = results.reshape(-1, *results.shape[-3:])
    facts = {"seed": how.seed, "sigmas": watch.sigmas, "calls": watch.calls, "clamped": watch.clamped}
    facts |= {"labels": watch.labels or None, "guessed": bool(watch.labels) and job.options["labels"] is None}
    said = "one network call each" if watch.calls == 1 else f"{watch.calls} network calls each"
    if facts["guessed"]:
        names = job.model.labels or []
        found = list(dict.fromkeys(names[label] for label in watch.labels))
        said += f"; class guessed: {', '.join(found[:3])}{' ...' * (len(found) > 3)} (--labels says it)"
    if watch.clamped > 0:
        said += f"; what was known changed by up to {watch.clamped:.2g} (of -1 to 1) where it would have left the range"
    return finish(task, name, how, results, before, how.n, facts, said)
