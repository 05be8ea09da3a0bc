"""atonce: train, distil, sample, edit, evaluate and serve one-step generative models (consistency models).

The front door. Everything is loaded when first used, so importing the package costs nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from typing import TYPE_CHECKING, Any

from atonce.core.version import VERSION as __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from atonce import editing as edit
    from atonce.client.client import Client as Client
    from atonce.core.images import to_uint8 as to_uint8
    from atonce.core.records import Record
    from atonce.data.dataset import ImageData
    from atonce.model import ConsistencyModel as ConsistencyModel
    from atonce.training import presets as recipes
    from atonce.training.loop import Run
    from atonce.training.recipe import Recipe

__all__ = ["Client", "ConsistencyModel", "__version__", "edit", "evaluate", "load", "recipes", "to_uint8", "train"]

_LAZY = {
    "Client": ("atonce.client.client", "Client"),
    "ConsistencyModel": ("atonce.model", "ConsistencyModel"),
    "edit": ("atonce.editing", None),
    "recipes": ("atonce.training.presets", None),
    "to_uint8": ("atonce.core.images", "to_uint8"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'atonce' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__() -> list[str]:
    return sorted(__all__)


def load(name_or_path: str | Path, *, kind: str | None = None, size: int | None = None) -> ConsistencyModel:
    """Open a model.

    Args:
        name_or_path: A name of the gallery that comes with the package (``"digits"``), a run or model folder, a checkpoint
            of others (OpenAI's ``.pt``, a pickle of EDM or ECT, a folder of diffusers, safetensors), or a hub id.
        kind: ``"consistency"`` or ``"denoiser"``, for weights of others that cannot tell.
        size: Height and width of the images, for weights of others that cannot tell.

    Returns:
        The model, on the CPU; move it with ``model.to("cuda")``.

    Raises:
        ModelFileError: There is no such model, or its files are damaged.
    """
    from atonce.exchange.open import open_model

    return open_model(name_or_path, kind=kind, size=size)


def train(
    recipe: Recipe,
    data: str | Path | ImageData = "digits",
    out: str | Path = "runs/run",
    resume: bool = True,
    *,
    device: str = "auto",
    precision: str = "auto",
    callback: Callable[[dict[str, Any]], None] | None = None,
    size: int | None = None,
    channels: int | None = None,
    teacher: ConsistencyModel | str | Path | None = None,
    **options: Any,
) -> Run:
    """Train a model; the same call continues an interrupted run where its last checkpoint stands.

    Args:
        recipe: What is learnt, from :mod:`atonce.recipes`. Its ``init`` and ``teacher`` are models or what :func:`load` takes;
            a student without ``init`` starts from its teacher, with ``init="random"`` from weights drawn from the seed.
        data: A name, a folder, zip or file of images, or an ``ImageData``.
        out: The run folder.
        resume: Whether a run that is there may be continued.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32``, ``bf16``.
        callback: Called with each log line.
        size: Height and width to which images are cropped and resized.
        channels: 1 for grey, 3 for RGB.
        teacher: Denoiser for distillation, instead of the recipe's: a model or what :func:`load` takes.
        options: Further fields of :class:`atonce.training.options.Options` (compile, microbatch, log_every, ...).

    Returns:
        The run: ``run.model``, ``run.folder``, ``run.records``.

    Raises:
        InputError: Recipe, data, folder and models do not fit together; nothing has been done then.
        ModelFileError: ``init`` or the teacher cannot be opened.
        TrainingError: The loss is not finite.
        StorageError: The disk is full or not writable.
    """
    from atonce.core.errors import InputError
    from atonce.data.sources import open_data
    from atonce.training.loop import fit
    from atonce.training.options import Options
    from atonce.training.recipe import DISTILLED, model_name

    known = set(Options.__dataclass_fields__)
    if unknown := sorted(set(options) - known):
        raise InputError(f"train has no option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    settings = Options(device=device, precision=precision, **options)  # type: ignore[arg-type]
    images = open_data(data, size=size, channels=channels)
    if teacher is not None:
        same: Any = {"teacher": teacher}  # a model or a name, until it is named
        if recipe.path in DISTILLED and model_name(recipe.init) == model_name(recipe.teacher):
            same["init"] = teacher  # it starts from its teacher, as before
        recipe = dataclasses.replace(recipe, **same)
    recipe, init, distilled = _opened(recipe)
    return fit(recipe, images, out, resume=resume, options=settings, init=init, teacher=distilled, callback=callback)


def _opened(recipe: Recipe) -> tuple[Recipe, ConsistencyModel | None, ConsistencyModel | None]:
    """The models that a recipe starts from and distils, and the recipe with names for them that can be saved and compared."""
    from atonce.model import ConsistencyModel
    from atonce.training.recipe import DISTILLED, RANDOM, model_name

    if recipe.path in DISTILLED and recipe.init is None:  # however the recipe was put together
        recipe = dataclasses.replace(recipe, init=recipe.teacher)
    names: dict[str, str | None] = {}
    opened: dict[str, ConsistencyModel | None] = {}
    for field in ("init", "teacher"):
        given: Any = getattr(recipe, field)
        names[field] = model_name(given)
        if given is None or isinstance(given, ConsistencyModel):
            opened[field] = given
        elif field == "init" and given == RANDOM:
            opened[field] = None
        else:
            opened[field] = opened["init"] if names.get("init") == names[field] and field != "init" else load(given)
    return dataclasses.replace(recipe, **names), opened["init"], opened["teacher"]  # type: ignore[arg-type]


def evaluate(
    model_or_images: ConsistencyModel | Tensor | str | Path,
    data: str | Path | ImageData = "digits",
    *,
    steps: int = 1,
    n: int = 10_000,
    metrics: Sequence[str] = ("frechet", "kid", "precision_recall"),
    extractor: str = "auto",
    reference: str | Path | None = None,
    seed: int = 0,
    batch: int | None = None,
    **options: Any,
) -> Record:
    """Measure a model, or images, against data.

    Args:
        model_or_images: A model, a tensor of images, or a folder of images.
        data: The data to compare with.
        steps: Intervals of the sampler.
        n: Number of samples.
        metrics: Names of metrics; ``"fid"`` means Inception weights only.
        extractor: What turns images into features.
        reference: A file of reference statistics (EDM's ``.npz``).
        seed: Seed of the samples.
        batch: Images at once.
        options: Further arguments of :func:`atonce.evaluation.evaluate.evaluate`, ``teacher`` also as what :func:`load` takes.

    Returns:
        A record: ``rec.metrics["frechet"].value`` and ``.interval``, with everything needed to repeat it.

    Raises:
        InputError: A name is not known or a value out of range.
    """
    from atonce.evaluation.evaluate import evaluate as measure

    if isinstance(options.get("teacher"), (str, os.PathLike)):
        options["teacher"] = load(options["teacher"])
    return measure(
        model_or_images,
        data,
        steps=steps,
        n=n,
        metrics=metrics,
        extractor=extractor,
        reference=reference,
        seed=seed,
        batch=batch,
        **options,
    )
