"""What the editing verbs share: their options, the model, labels by name, progress, and how a result is shown and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import atonce
from atonce.core import follow
from atonce.core.choices import Fit, class_rows
from atonce.core.errors import InputError
from atonce.verbs.output import show

if TYPE_CHECKING:
    from torch import Tensor

    from atonce.core.progress import Progress
    from atonce.model import ConsistencyModel
    from atonce.verbs.edit_files import Pictures

_SHOWN = 8  # results of each image in the picture of before and after


@dataclasses.dataclass(frozen=True)
class Common:
    """What every edit can be told.

    Attributes:
        out: A .png (several results become a grid), an .npz (arr_0: N H W C), or a folder for one PNG each.
        before_after: A .png with input, known part and results beside each other.
        fit: What to do with pictures of another size: refuse, crop (the middle square, resized), pad (shrunk whole, with a
            border; where an edit has a mask, the border is made).
        labels: Class of the images, by name or number: one for all, one for each image or one for each result.
        guidance: Scale of classifier-free guidance, for models that know it; 1 is none.
        batch: Images computed at once.
        device: auto, cpu, cuda or cuda:N.
        json: Print the result as JSON.
    """

    out: Path = Path("edited.png")
    before_after: Path | None = None
    fit: Fit = "none"
    labels: tuple[str, ...] = ()
    guidance: float | None = None
    batch: int | None = None
    device: str = "auto"
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Drawn(Common):
    """What an edit that draws noise can be told besides.

    Attributes:
        n: Results for each image, each from noise of its own.
        seed: Seed of the noise.
        steps: Network calls for each result; every edit has a default of its own.
        sigmas: Noise levels, descending, instead of the default ones for the steps.
    """

    n: int = 1
    seed: int = 0
    steps: int | None = None
    sigmas: tuple[float, ...] = ()


COMMON, DRAWN = Common(), Drawn()


def open_model(name: str, device: str) -> ConsistencyModel:
    """A model that makes pictures, on a device.

    Args:
        name: What ``atonce.load`` takes.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The model.

    Raises:
        InputError: Its images are no pictures, or the device is not there.
    """
    from atonce.training.options import pick_device

    chosen = pick_device(device)
    model = atonce.load(name).to(chosen)
    if model.shape[0] not in (1, 3) or model.shape != model.image_shape or model.clip != (-1.0, 1.0):
        raise InputError(
            f"{name} makes data {list(model.shape)} that are no grey or RGB pictures: edit them in Python, with atonce.edit"
        )
    return model


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """An edit whose input has been read and checked.

    Attributes:
        model: The model.
        pictures: The images as they were read.
        x: The same in [-1, 1], each repeated for each of its results: float32 [N · n, C, h, w].
        mask: bool [1, H, W] or [1, 1, H, W], true where pixels are to be made, where the edit has one.
        options: Labels, guidance and batch; for edits that draw noise also seed and times.
    """

    model: ConsistencyModel
    pictures: Pictures
    x: Tensor
    mask: Tensor | None
    options: dict[str, Any]


def open_job(
    name: str,
    path: Path,
    how: Common,
    *,
    mask: Path | None = None,
    masked: bool = False,
    model: ConsistencyModel | None = None,
    channels: int | None = None,
    side: int | None = None,
    free: bool = False,
    remedy: str = "",
    factor: int = 1,
    shape: tuple[int, int, int] | None = None,
) -> Job:
    """Read and check what an edit of pictures needs.

    Args:
        name: The model's name.
        path: The picture.
        how: The user's options.
        mask: File of a mask.
        masked: Whether the edit has a mask; without a file it is what is transparent, or the border of ``--fit pad``.
        model: The model, where it is open already.
        channels: Channels of the pictures; default the model's.
        side: Height and width of the pictures; default the model's.
        free: Pictures may have any size.
        remedy: What a message about a wrong size adds.
        factor: Pictures that are smaller by just this factor become patches of equal pixels.
        shape: (C, H, W) of the results; default the model's.

    Returns:
        The job. No file has been written and the model has not been called.

    Raises:
        InputError: Something does not fit.
    """
    from atonce.core.images import from_uint8
    from atonce.verbs.edit_files import check_out, check_picture, read_mask, read_pictures

    opened = model or open_model(name, how.device)
    n = how.n if isinstance(how, Drawn) else 1
    if n < 1:
        raise InputError(f"n is {n}, must be at least 1")
    wanted = None if free else side or opened.shape[1]
    pictures = read_pictures(path, channels or opened.shape[0], wanted, how.fit, remedy, factor)
    found = pictures.made
    if mask is not None:
        found = read_mask(mask, pictures.size, wanted, pictures.fit)
    if masked and pictures.border is not None:
        found = pictures.border if found is None else found | pictures.border
    inputs = [path, *([mask] if mask else [])]
    count = len(pictures.images) * n
    check_out(how.out, shape or opened.shape, count, inputs)
    if how.before_after is not None:
        check_picture(how.before_after, inputs)
        if how.before_after == how.out:
            raise InputError(f"{how.out} is both the result and the picture of before and after: give two names")
    options = {"labels": read_labels(opened, how.labels, len(pictures.images), n, pictures.labels)}
    options |= noise_options(how) if isinstance(how, Drawn) else given(guidance=how.guidance, batch=how.batch)
    x = from_uint8(pictures.images).to(opened.device).repeat_interleave(n, 0)
    return Job(opened, pictures, x, found if masked else None, options)


def read_labels(model: ConsistencyModel, words: Sequence[str], images: int, n: int, given: Tensor | None = None) -> Any:
    """Classes by name or number.

    Args:
        model: The model.
        words: One for all, one for each image, or one for each result; or none.
        images: Number of images.
        n: Results of each.
        given: Classes int64 [images] that came with the images, for where no words are given and the model has classes.

    Returns:
        One class for all results as an int, a list of one for each result, or ``None``.

    Raises:
        InputError: A class is unknown, or their number does not fit.
    """
    found = class_rows(words, model.labels, images, n)
    if found is not None or given is None or model.labels is None:
        return found
    return [int(label) for label in given.tolist() for _ in range(n)]


class Watch(follow.Follow):
    """Follows an edit by its callback: shows progress once something happens, and remembers what was done.

    Args:
        title: What is done.
        count: Results that are made.
        steps: Network calls that each will need, as far as one knows.
        unit: What is counted.
    """

    def __init__(self, title: str, count: int, steps: int = 1, unit: str = "img") -> None:
        super().__init__(count, steps)
        self.title, self.unit = title, unit
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def __call__(self, info: dict[str, Any]) -> None:
        """Take in what an edit tells after each step."""
        super().__call__(info)
        self.at(self.done)

    def at(self, done: float, text: str = "") -> None:
        """Show how many results are done, so far as one can say, with a few words."""
        from atonce.core.progress import Progress

        if self._bar is None:
            self._bar = Progress(self.title, self.count, self.unit).__enter__()
        self._bar.update(min(done, self.count), text)


def finish(
    task: str,
    name: str,
    how: Common,
    results: Tensor,
    before: Sequence[tuple[str, Tensor]],
    each: int,
    facts: dict[str, Any],
    said: str,
) -> int:
    """Quantise, save and show results.

    Args:
        task: Name of the edit.
        name: Name of the model, as the user gave it.
        how: The user's options.
        results: float [N · each, C, H, W].
        before: Columns of the picture of before and after, left of the results: title and uint8 [N, C, h, w].
        each: Results of each image.
        facts: What was done.
        said: The same for people, in a few words.

    Returns:
        The exit status.
    """
    from atonce.core.images import to_uint8
    from atonce.reports.edit_pictures import before_after
    from atonce.reports.pictures import write_png
    from atonce.verbs.edit_files import write_results

    made = to_uint8(results).cpu()
    about = {"edit": task, "model": Path(name).name, "n": len(made), **facts}
    files = write_results(how.out, made, about, each)
    if how.before_after is not None:
        shown = min(each, _SHOWN)
        rows = made.unflatten(0, (-1, each))
        after = [("result" if shown == 1 else f"result {k + 1}", rows[:, k]) for k in range(shown)]
        write_png(how.before_after, before_after([*before, *after]))
    also = f" and {how.before_after}" if how.before_after else ""
    show(
        {**about, "out": str(how.out), "files": files},
        f"{how.out}{also}: {len(made)} result{'s' * (len(made) > 1)}, {said}",
        how.json,
    )
    return 0


def steps_of(function: Callable[..., Any], how: Drawn) -> int:
    """Network calls for each result: those that the user gave, else the function's default."""
    return follow.steps_of(function, how.steps, how.sigmas)


def given(**options: Any) -> dict[str, Any]:
    """Those options that the user gave (not ``None``), for functions that have defaults of their own."""
    return {name: value for name, value in options.items() if value is not None}


def noise_options(how: Drawn) -> dict[str, Any]:
    """Steps, noise levels, seed, guidance and batch as the functions of ``atonce.edit`` take them."""
    return given(steps=how.steps, sigmas=list(how.sigmas) or None, seed=how.seed, guidance=how.guidance, batch=how.batch)
