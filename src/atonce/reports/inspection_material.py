"""The images an inspection needs: those a model was trained on, and others that it has not seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from atonce.core.errors import DataError, InputError
from atonce.core.streams import permutation
from atonce.data.bundled import NAMES
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel

_CARD = re.compile(r"(?P<name>.+) \(.*sha256 (?P<digest>[0-9a-f]{8,64})\)")


@dataclass(frozen=True)
class Material:
    """Real images beside a model.

    Attributes:
        training: The training images, or what was given as such.
        held_out: Others of the same kind; training images where there are none.
        unseen: Whether ``held_out`` really was kept out of training.
        matches: Whether the training images are those that the model's card names; ``None`` where the card does not say.
    """

    training: ImageData
    held_out: ImageData
    unseen: bool
    matches: bool | None

    def real(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """Some held-out images in an order given by the seed.

        Args:
            count: How many at most.
            seed: Of the choice.

        Returns:
            uint8 [n, C, H, W] and their labels int64 [n], if any.
        """
        index = self.chosen(count, seed)
        return self.held_out.images[index], None if self.held_out.labels is None else self.held_out.labels[index]

    def chosen(self, count: int, seed: int = 0) -> Tensor:
        """Positions of those images in ``held_out``, int64 [n]."""
        return permutation(seed, 0, len(self.held_out))[:count]


def material_of(model: ConsistencyModel) -> tuple[Material | None, str]:
    """The data that a model's card names, where they can be opened.

    Args:
        model: The model.

    Returns:
        The images, or ``None`` and a sentence that says why not.
    """
    named = _CARD.fullmatch(str(model.card.get("data", "")))
    if named is None:
        return None, "the model's card does not name its training data"
    name, digest = named["name"], named["digest"]
    if name not in NAMES:
        return None, f"the model's card names its training data as {name!r}, which is not a data set that is known by name"
    shape = model.shape
    try:
        training = open_data(name)
        # A run may have made its images smaller or grey; the checksum tells whether this is what it did.
        changes = {} if training.shape == shape else {"size": shape[1], "channels": shape[0]}
        material = _material(name, model, **changes)
    except InputError as error:
        return None, str(error)
    if changes and not material.training.digest().startswith(digest):
        return None, f"{name}, resized to the model's images, is not what its card names: give the training images"
    return material, ""


def open_material(spec: str | Path, model: ConsistencyModel, size: int | None = None, channels: int | None = None) -> Material:
    """Images that a user names, checked against the model.

    Args:
        spec: A known name or a path.
        model: The model.
        size: Crop and resize to this height and width.
        channels: 1 for grey, 3 for RGB.

    Returns:
        The images.

    Raises:
        DataError: They cannot be opened, or their shape or classes are not those of the model.
    """
    return _material(spec, model, size=size, channels=channels)


def _material(spec: str | Path, model: ConsistencyModel, **changes: int | None) -> Material:
    training = open_data(spec, split="train", **changes)  # type: ignore[arg-type]
    _check(training, model)
    try:
        held_out, unseen = open_data(spec, split="test", **changes), True  # type: ignore[arg-type]
    except DataError:  # one set without a test split
        held_out, unseen = training, False
    if unseen:
        _check(held_out, model)
    if len(training) < 2 or len(held_out) < 2:
        raise DataError(f"{training.name} has {min(len(training), len(held_out))} image of a split: at least 2 are needed")
    named = _CARD.fullmatch(str(model.card.get("data", "")))
    matches = None if named is None else training.digest().startswith(named["digest"])
    if matches is False:
        matches = training.without_labels().digest().startswith(named["digest"]) if named else False
    return Material(training, held_out, unseen, matches)


def _check(data: ImageData, model: ConsistencyModel) -> None:
    if data.shape != model.shape:
        ours, theirs = "x".join(map(str, model.shape)), "x".join(map(str, data.shape))
        channels, height, _ = model.shape
        raise DataError(
            f"the images of {data.name} are {theirs}, the model's {ours}: give its training data, "
            f"or --size {height} --channels {channels}"
        )
    if model.labels is None:
        return
    if data.labels is None:
        raise DataError(
            f"{data.name} has no labels, the model has {len(model.labels)} classes: give labelled data (a subfolder for each)"
        )
    names = list(data.label_names) if data.label_names is not None else None
    if model.config.labels is not None and names is not None and names != list(model.labels):
        raise DataError(
            f"the classes of {data.name} are {_few(names)}, the model's {_few(model.labels)}: they must be the same"
        )
    if int(data.labels.max()) >= len(model.labels):
        raise DataError(
            f"{data.name} has labels up to {int(data.labels.max())}, the model has {len(model.labels)} classes "
            f"(0 to {len(model.labels) - 1}): give the data it was trained on"
        )


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"
