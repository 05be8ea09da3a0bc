"""What is settled and checked before a run begins, so that bad input is named before any work is done."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.version import VERSION
from atonce.data.dataset import ImageData, require_labels
from atonce.model import ConsistencyModel
from atonce.networks.build import build, config_to_dict
from atonce.training.product import preconditioning_of
from atonce.training.recipe import Recipe


def resolve(recipe: Recipe, data: ImageData, init: ConsistencyModel | None = None) -> Recipe:
    """The recipe with all that depends on the data and on the starting model filled in.

    Args:
        recipe: What is learnt.
        data: What it is learnt from.
        init: Model whose weights start the run.

    Returns:
        A recipe with a network configuration and a number for sigma_data.

    Raises:
        InputError: The data do not fit the recipe (size, shape, labels).
    """
    channels, height, width = data.shape
    if height != width:
        raise InputError(
            f"{data.name} has images of {height}x{width}: networks take squares; give a size to crop and resize to"
        )
    if recipe.conditional:
        require_labels(data)
    if init is not None and init.shape != data.shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (init.shape, data.shape))
        who = "the teacher" if recipe.init and recipe.init == recipe.teacher else "init"
        raise InputError(f"{who} is a model for {theirs} images, the data have {ours}: give data of its size, or another model")
    known = None if init is None else (init.config.network, init.sigma_data)
    clock = None if init is None else init.config.preconditioning.clock
    return recipe.resolve(height, channels, data.num_classes, data.statistics().std, known, clock)


# What a network may be told in addition to what its starting model was told: these weights start at zero, so that the run
# starts exactly where that model stands.
_ADDED = ("map_label.", "map_augment.", "map_guidance.", "map_second.")


def starting_weights(init: ConsistencyModel, recipe: Recipe) -> dict[str, Tensor]:
    """The weights of a model, fitted to the network of a recipe.

    Networks must be equal but for what they are told: class labels, augmentation labels or a guidance scale may be added, and
    the model's augmentation labels may be dropped (they are zero where nothing was augmented). A flow map's second time may be
    added. Between EDM's form and TrigFlow's the output layer changes its sign, and nothing else changes (:func:`_sign`).

    Args:
        init: The model whose weights start the run.
        recipe: A resolved recipe.

    Returns:
        A state dict of the recipe's network.

    Raises:
        InputError: The networks differ otherwise, or sigma_data does; the message says in what.
    """
    assert not isinstance(recipe.network, str)  # it is resolved
    theirs, ours = config_to_dict(init.config.network), config_to_dict(recipe.network)
    free = {"augment_labels", "dropout_resolution"}
    free |= {"labels"} if not theirs.get("labels") else set()
    free |= {name for name in ("guidance", "second_time") if not theirs.get(name)}
    names = [name for name in ours if name not in free] + [name for name in theirs if name not in ours]
    if differs := [f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in names if theirs.get(n) != ours.get(n)]:
        remedy = "give the recipe the same network, or network='auto'"
        if theirs.get("labels") and not ours.get("labels"):
            remedy = "its labels cannot be left out, give the recipe conditional=True"
        raise InputError(f"init has another network ({'; '.join(differs)}): {remedy}")
    if abs(init.sigma_data / float(recipe.sigma_data) - 1) > 0.01:
        raise InputError(
            f"init was trained with sigma_data {init.sigma_data:g}, the recipe has {recipe.sigma_data}: leave "
            "sigma_data='measured', which takes over that of init"
        )
    network = build(recipe.network, None)
    given, sign = init.network.state_dict(), _sign(init, recipe)
    started = {
        name: given[name] if name in given and given[name].shape == value.shape else _zero(name, value)
        for name, value in network.state_dict().items()
    }
    return {name: -value if sign < 0 and name.startswith(network.output) else value for name, value in started.items()}


def _sign(init: ConsistencyModel, recipe: Recipe) -> int:
    """The factor on the output layer: TrigFlow's F is EDM's with the sign turned, at the same input (Lu and Song 2024).

    Args:
        init: The model whose weights start the run.
        recipe: A resolved recipe.

    Returns:
        1 or -1.

    Raises:
        InputError: The networks' outputs mean different things, or the networks are told different times.
    """
    theirs, ours = init.config.preconditioning, preconditioning_of(recipe)
    if theirs.kind != ours.kind and "flow" in (theirs.kind, ours.kind):
        raise InputError(
            f"init has the {theirs.kind} preconditioning, the recipe {ours.kind}: what the networks give cannot be turned into "
            f"each other; give the recipe preconditioning={theirs.kind!r}"
        )
    if theirs.clock != ours.clock:
        raise InputError(
            f"the network of init is told {'ln(sigma)' if theirs.clock == 'log' else 'the time t'}, the recipe has "
            f"clock={ours.clock!r}: leave clock='auto', which takes over that of init"
        )
    return 1 if (theirs.kind == "trigflow") == (ours.kind == "trigflow") else -1


def class_names(data: ImageData) -> list[str]:
    """Names of the classes of data, or their numbers."""
    return list(data.label_names or map(str, range(data.num_classes)))


def few(names: list[str]) -> str:
    """The first names of a list, and how many there are."""
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"


def transfers(init: ConsistencyModel, recipe: Recipe, data: ImageData) -> list[str]:
    """In what a run goes on to something that its starting model has not learnt: allowed, and said in the log and the card.

    Args:
        init: The model whose weights start the run.
        recipe: A resolved recipe.
        data: The training images.

    Returns:
        A line for each.
    """
    notes = []
    theirs, ours = init.labels, class_names(data)
    named = init.config.labels is not None and data.label_names is not None
    if recipe.conditional and theirs is not None and theirs != ours and named:
        notes.append(f"the classes of init are {few(theirs)}, here they are {few(ours)}: each starts as the one in its place")
    if recipe.sigma_min < init.sigma_min * (1 - 1e-6) or recipe.sigma_max > init.sigma_max * (1 + 1e-6):
        notes.append(
            f"init has learnt noise levels from {init.sigma_min:g} to {init.sigma_max:g}, here they are "
            f"{recipe.sigma_min:g} to {recipe.sigma_max:g}: those outside start untrained"
        )
    return notes


def _zero(name: str, value: Tensor) -> Tensor:
    assert name.startswith(_ADDED), name  # the configurations agree in everything else
    return torch.zeros_like(value)


def run_facts(data: ImageData) -> dict[str, Any]:
    """What identifies a run beside its recipe, as JSON values.

    Args:
        data: The training images.

    Returns:
        The data (name, source, digest, count, shape), versions, and the time.
    """
    return {
        "data": {
            "name": data.name,
            "source": data.source,
            "digest": data.digest(),
            "count": len(data),
            "shape": list(data.shape),
        },
        "versions": {"atonce": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
