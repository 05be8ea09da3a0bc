"""What is settled and checked before a run begins, so that bad input is named before any work is done."""

from __future__ import annotations

import datetime
import hashlib
import platform
from typing import Any

import torch

from atonce.core.errors import InputError
from atonce.core.version import VERSION
from atonce.data.dataset import ImageData, require_labels
from atonce.model import ConsistencyModel
from atonce.training.recipe import Recipe


def resolve(recipe: Recipe, data: ImageData) -> Recipe:
    """The recipe with all that depends on the data filled in.

    Args:
        recipe: What is learnt.
        data: What it is learnt from.

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
    return recipe.resolve(height, channels, data.num_classes, data.statistics().std)


def check_init(init: ConsistencyModel, recipe: Recipe) -> None:
    """Refuse a start from a model with another network.

    Args:
        init: The model whose weights start the run.
        recipe: A resolved recipe.

    Raises:
        InputError: The networks differ; the message says in what.
    """
    theirs, ours = vars(init.config.network), vars(recipe.network)
    if differs := [f"{name}: {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name]]:
        raise InputError(f"init has another network ({'; '.join(differs)}): give the recipe the same network")


def check_teacher(teacher: ConsistencyModel | None, recipe: Recipe, data: ImageData) -> None:
    """Refuse a teacher that cannot give the recipe's pairs.

    Args:
        teacher: The denoiser whose ODE gives the pairs, where there is one.
        recipe: The recipe.
        data: The training images.

    Raises:
        InputError: It is missing or unfit.
    """
    if teacher is None:
        if recipe.path in ("euler", "heun"):
            raise InputError(f"recipe field path is {recipe.path!r}, which needs a teacher: give one, or use path='same-noise'")
        return
    if teacher.kind != "denoiser" or teacher.shape != data.shape:
        raise InputError(
            f"the teacher is a {teacher.kind} model for {teacher.shape} images; needed is a denoiser for {data.shape}: "
            "train one with the diffusion recipe"
        )


def model_identity(model: ConsistencyModel) -> str:
    """A name for a model that was given as an object, so that a recipe can say from which weights it starts.

    Args:
        model: The model.

    Returns:
        Its card's name, if it has one, and the start of a digest of its weights.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"{model.card.get('name', 'model')}, sha256 {digest.hexdigest()[:16]}"


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
