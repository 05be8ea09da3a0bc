"""Where the samples of an evaluation come from: a model that makes them, a tensor, or a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atonce.core.checks import numbers, whole
from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.core.images import to_uint8
from atonce.core.records import BALANCED, UNIFORM
from atonce.core.streams import permutation
from atonce.data.dataset import ImageData
from atonce.data.limits import check_memory
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel
from atonce.model_config import drawn_labels
from atonce.model_files import model_identity

CELL = 64
"""Images that a model makes together: numbers 64 k to 64 k + 63, whatever the batch and the number of processes.

Networks in float32 round differently in batches of other sizes, and a value beside the border of two of the 256 levels then
falls on its other side: distances would agree to six digits only. 64 is a multiple of ``gather.CHUNK``, so processes that share
the samples make few of them twice, and no more than ``sample`` itself takes at once.
"""
LABEL_BYTES = 160
"""Memory that the label of a sample takes at most, while all are drawn and put into an order."""
MOST = 1 << 40
"""Samples, at most: numbers of images stay far inside 64 bits."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a model is asked for samples: arguments of its ``sample``; ``labels="balanced"`` is all classes equally often.

    ``batch`` is how many images are taken in one go. The model makes them 64 together in any case (:data:`CELL`).
    """

    steps: int = 1
    seed: int = 0
    batch: int | None = None
    labels: Any = None
    guidance: float | None = None
    sigmas: Sequence[float] | None = None
    sampler: str = "auto"
    ema: str | None = None

    def __post_init__(self) -> None:
        if whole(self.steps, "steps") < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")
        whole(self.seed, "seed")
        if self.guidance is not None:
            numbers([self.guidance], "guidance")
        if self.sigmas is not None:
            numbers(self.sigmas, "sigmas")
        for name, value in (("sampler", self.sampler), ("ema", self.ema)):
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} must be a name, got {value!r}")


@dataclasses.dataclass
class Samples:
    """The samples, and what a record says about them.

    Attributes:
        count: How many there are.
        shape: (C, H, W) of the data that they must have.
        floats: The samples first ... first + count - 1 at so many steps (None: those asked for), float in [-1, 1]; None where
            the images were given.
        make: The same quantised, uint8.
        labels: Class of each sample as the data count them, int64 [count], or None where nobody knows.
        asked: The same as the model counts them.
        classes: Which classes were asked for, in words.
        model: What makes them, or None.
        sampling: How it was asked; None where the images were given.
        device: Where they are made.
        calls: Network calls for each sample, once samples were made.
        others: Where the samples have classes that are not those of the data: both, in words.
    """

    count: int
    shape: tuple[int, int, int]
    make: Callable[[int, int], Tensor]
    floats: Callable[[int, int, int | None], Tensor] | None = None
    labels: Tensor | None = None
    asked: Tensor | None = None
    classes: str | None = None
    model: Any = None
    sampling: Sampling | None = None
    device: str = "given images"
    calls: int | None = None
    others: str | None = None

    def conditions(self) -> dict[str, Any]:
        """Fields of the record that say how the samples were made."""
        asked = self.sampling
        if asked is None:
            return {"recipe": None, "seed": None, "steps": None, "calls": None, "labels": self.classes}
        fixed: tuple[float, ...] = getattr(getattr(getattr(self.model, "config", None), "guidance", None), "scales", ())
        return {
            "model": model_identity(self.model) if isinstance(self.model, ConsistencyModel) else None,
            "recipe": recipe_hash(self.model),
            "seed": asked.seed,
            "steps": asked.steps if asked.sigmas is None else step_count(asked.sigmas, self.model),
            "calls": self.calls,
            "sigmas": None if asked.sigmas is None else tuple(float(sigma) for sigma in asked.sigmas),
            "guidance": asked.guidance if asked.guidance is not None else fixed[0] if len(fixed) == 1 else None,
            "sampler": None if asked.sampler == "auto" else asked.sampler,
            "ema": asked.ema,
            "labels": self.classes,
        }


def open_samples(given: Any, n: int, real: ImageData, sampling: Sampling) -> Samples:
    """Samples of a model, or images that are there.

    Args:
        given: A model with ``sample``, a tensor [n, C, H, W], an :class:`ImageData`, or a folder of images.
        n: Samples to make; of images that are there the first n are used.
        real: The data they are to be like.
        sampling: How a model is asked.

    Returns:
        The samples; nothing is made yet.

    Raises:
        InputError: There is nothing to sample from, or shape, labels or options do not fit.
    """
    if isinstance(given, str | Path):
        given = open_data(given, split="all")
    if isinstance(given, Tensor | ImageData):
        return _given(given, n, real, sampling.labels)
    if not callable(getattr(given, "sample", None)):
        raise InputError(f"expected a model with sample(), an image tensor or a folder, got {type(given).__name__}")
    return _made(given, n, real, sampling)


def _given(given: Tensor | ImageData, n: int, real: ImageData, labels: Any) -> Samples:
    asked, words, other = None, None, None
    if isinstance(given, ImageData):
        images = given.images
        asked = same_classes(given.labels, class_names(given), class_names(real))
        words = None if asked is None else "of the images"
        other = None if given.labels is None or asked is not None else class_names(given)
    else:
        images = _as_uint8(given)
    _check_shape(images, real.shape)
    if len(images) < 2:
        raise InputError(f"at least 2 images are needed, got {len(images)}")
    count = min(n, len(images))
    if labels is not None:
        asked, words = _labels(labels, count, real.num_classes or None, "the data")
    return Samples(
        count,
        real.shape,
        lambda first, many: images[first : first + many],
        labels=None if asked is None else asked[:count],
        classes=words,
        others=_others("the images", other, real),
    )


def _made(model: Any, n: int, real: ImageData, asked: Sampling) -> Samples:
    shape = getattr(model, "image_shape", real.shape)
    if tuple(shape) != real.shape:
        raise InputError(f"the model makes images {list(shape)}, the data are {list(real.shape)}: they must agree")
    names = model_classes(model)
    if n > MOST:
        raise InputError(f"n must be at most 2^40 samples, got {n}: make fewer")
    if names is not None or asked.labels is not None:
        check_memory(LABEL_BYTES * n, f"labels of {n:,} samples", "make fewer samples")
    labels, words = _labels(asked.labels, n, None if names is None else len(names), "the model")
    if labels is None and names is not None:
        # What the model itself draws where no labels are given.
        labels = drawn_labels(asked.seed, torch.arange(n), len(names))
        words = UNIFORM
    options: dict[str, Any] = {
        name: value
        for name, value in (("guidance", asked.guidance), ("ema", asked.ema), ("sampler", asked.sampler))
        if value not in (None, "auto")
    }
    if isinstance(model, ConsistencyModel):  # no samples, but every check of what is asked
        model.sample(0, asked.steps, asked.seed, sigmas=asked.sigmas, batch=asked.batch, labels=_none(labels), **options)
    found = Samples(n, real.shape, lambda first, count: to_uint8(floats(first, count, None)))
    found.model, found.sampling, found.classes = model, asked, words
    found.device = device_name(getattr(model, "device", "cpu"))
    if labels is not None and names is not None:
        found.asked, found.labels = labels, same_classes(labels, names, class_names(real))
        found.others = _others("the model", names if found.labels is None else None, real)

    def count_calls(state: Any) -> None:
        """A step of the sampler: its running number of calls for the batch; every batch counts from one."""
        calls = state.get("calls") if isinstance(state, dict) else None
        if calls is not None:
            found.calls = max(found.calls or 0, int(calls))

    listens = _takes_callback(model.sample)

    together = min(CELL, n)  # fewer are made together in any case
    kept: dict[int | None, tuple[int, Tensor]] = {}  # the last cell at each number of steps, for batches smaller than it

    def cell(start: int, steps: int | None) -> Tensor:
        """All images of a cell, those beyond the last one asked for too."""
        if steps in kept and kept[steps][0] == start:
            return kept[steps][1]
        size = together
        told: dict[str, Any] = {"steps": steps or asked.steps, "seed": asked.seed, "batch": size, **options}
        if asked.sigmas is not None:
            told["sigmas"] = list(asked.sigmas)[:steps] if steps is not None else list(asked.sigmas)
        if labels is not None:
            told["labels"] = labels[torch.arange(start, start + size).clamp(max=n - 1)]
        if listens and steps is None:
            told["callback"] = count_calls
        made: Tensor = model.sample(size, first=start, **told)
        if not bool(torch.isfinite(made).all()):
            raise InputError(f"the model gave values that are not finite among the samples {start} to {start + size - 1}")
        _check_shape(made, real.shape)
        if made.shape[0] != size:
            raise InputError(f"the model gave {made.shape[0]} images where {size} were asked for")
        kept[steps] = (start, made)
        return made

    def floats(first: int, count: int, steps: int | None) -> Tensor:
        parts = []
        for start in range(first // together * together, first + count, together):
            begin, end = max(first, start), min(first + count, start + together)
            parts.append(cell(start, steps)[begin - start : end - start])
        return torch.cat(parts)

    found.floats = floats
    return found


def step_count(sigmas: Sequence[float], model: Any) -> int:
    """Intervals that given noise levels stand for: a closing 0 or sigma_end is no start of one."""
    closed = len(sigmas) > 1 and float(sigmas[-1]) in (0.0, getattr(model, "sigma_end", 0.0))
    return len(sigmas) - closed


def model_classes(model: Any) -> list[str] | None:
    """Names of the classes of a conditional model, or None."""
    names = getattr(model, "labels", None)
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def class_names(data: ImageData) -> tuple[str, ...]:
    """Names of the classes of data: their numbers where they have none, nothing without labels."""
    return data.label_names or tuple(map(str, range(data.num_classes)))


def same_classes(labels: Tensor | None, names: Sequence[str], others: Sequence[str]) -> Tensor | None:
    """Labels of one list of classes as numbers of another.

    Args:
        labels: int64 [n], counted by ``names``; below 0 is "no class".
        names: Names of the classes.
        others: Those of the other list.

    Returns:
        The labels, matched by name where the other list has all the names; taken as they are where both lists are equally
        long and one of them has plain numbers for names (0, 1, 2, ...); None where there are none or they are of other
        classes.
    """
    if labels is None or not others:
        return None
    if set(names) <= set(others):
        table = torch.tensor([*(list(others).index(name) for name in names), -1])  # the last one is for "no class"
        return table[labels.clamp(min=-1)]
    return labels if len(names) == len(others) and (_numbered(names) or _numbered(others)) else None


def _numbered(names: Sequence[str]) -> bool:
    """Whether the names are 0, 1, 2, ... in order (000, 001, 002, ... too)."""
    return all(name.isascii() and name.isdecimal() and int(name) == place for place, name in enumerate(names))


def _others(whose: str, names: Sequence[str] | None, real: ImageData) -> str | None:
    """Classes that are not those of the data, in words; None where the names are."""
    theirs = class_names(real)
    if names is None or not theirs:
        return None
    lists = [", ".join([*each[:3], *(["..."] if len(each) > 3 else [])]) for each in (list(names), list(theirs))]
    return f"the classes of {whose} ({len(names)}: {lists[0]}) are not those of {real.name} ({len(theirs)}: {lists[1]})"


def recipe_hash(model: Any) -> str | None:
    """Of the card's recipe as JSON: its hash where the card gives one, else computed as the recipe computes its own."""
    card = getattr(model, "card", None)
    if not isinstance(card, Mapping):
        return None
    found, recipe = card.get("recipe_hash") or card.get("recipe_digest"), card.get("recipe")
    if isinstance(found, str):
        return found
    return sha256_json(recipe) if isinstance(recipe, Mapping) else None


def device_name(device: Any) -> str:
    """A device in words: its name, or the processor and the number of threads."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _check_shape(images: Tensor, shape: tuple[int, int, int]) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(f"the images are {list(images.shape[1:])}, the data {list(shape)}: they must agree")


def _none(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels[:0]


def _as_uint8(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"images must be uint8 or float in [-1, 1], got {images.dtype}")
    low, high = (float(v) for v in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):
        raise InputError(f"float images must lie in [-1, 1], got {low:.4g} to {high:.4g}: scale or clamp them first")
    return to_uint8(images)


def _labels(labels: Any, n: int, classes: int | None, whose: str) -> tuple[Tensor | None, str | None]:
    """Labels for n samples, and what a record calls them; ``classes`` is None where the model does not say how many it has."""
    if labels is None:
        return None, None
    if isinstance(labels, str):
        if labels != BALANCED or not classes:
            known = f"numbers of classes or {BALANCED!r}" if classes else f"numbers of classes ({whose} names no classes)"
            raise InputError(f"labels={labels!r} cannot be used: give {known}")
        # In no order: intervals leave out every so-manieth sample.
        return permutation(0, 0, n) % classes, BALANCED
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"labels must be whole numbers, one or one for each sample, got {_short(labels)}") from error
    if found.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise InputError(f"labels must be whole numbers, got {found.dtype}")
    found = found.to("cpu", torch.int64)
    if found.ndim != 0 and found.shape != (n,):
        raise InputError(f"labels must be one label or one for each of {n} samples, got {list(found.shape)}")
    if classes is not None and found.numel() and int(found.max()) >= classes:
        raise InputError(f"label {int(found.max())} is out of range: there are {classes} classes, 0 to {classes - 1}")
    if found.ndim == 0:
        return found.expand(n), f"all {int(found)}" if int(found) >= 0 else "no class"
    return found, f"given, sha256 {hashlib.sha256(found.numpy().astype('<i8').tobytes()).hexdigest()[:12]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _takes_callback(sample: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(sample).parameters
    except (TypeError, ValueError):
        return False
    return "callback" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
