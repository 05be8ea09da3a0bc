"""The diffusion model that is distilled: how training calls it, and whether it fits what is to be learnt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.data.dataset import ImageData
from atonce.model import ConsistencyModel
from atonce.sampling.guidance import guided
from atonce.training.recipe import DISTILLED, Recipe
from atonce.training.start import class_names, few


def denoise(
    teacher: ConsistencyModel,
    x: Tensor,
    sigma: Tensor,
    *,
    label: Tensor | None,
    guidance: float | Tensor | None,
    dtype: torch.dtype,
    augment: Tensor | None = None,
) -> Tensor:
    """D(x, sigma) of the teacher, guided where a scale is given, without the checks of the model's own call.

    Args:
        teacher: The denoiser.
        x: Noisy images [B, C, H, W].
        sigma: Noise levels [B].
        label: Classes int64 [B]; a negative one is "no class".
        guidance: w of D_u + w (D_c - D_u), one number or [B].
        dtype: Precision of the network.
        augment: Augmentation labels [B, A] of images that were augmented.

    Returns:
        [B, C, H, W].
    """

    def call(x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        told = {} if augment is None else {"augment": augment if len(x) == len(augment) else torch.cat([augment, augment])}
        return teacher.config.preconditioning(teacher.network, x, sigma, dtype=dtype, label=label, **told)

    return call(x, sigma, label) if guidance is None or label is None else guided(call, x, sigma, label, guidance)


def check_teacher(teacher: ConsistencyModel | None, recipe: Recipe, data: ImageData) -> None:
    """Refuse a teacher that cannot give the recipe's pairs.

    Args:
        teacher: The denoiser that is distilled, where there is one.
        recipe: A resolved recipe.
        data: The training images.

    Raises:
        InputError: It is missing or unfit; the message says in what.
    """
    if teacher is None:
        if recipe.path in DISTILLED:
            raise InputError(f"recipe field path is {recipe.path!r}, which needs a teacher: give one, or use path='same-noise'")
        return
    if recipe.path not in DISTILLED:
        raise InputError(f"a teacher is given, but recipe field path is {recipe.path!r} and needs none: use cd or progressive")
    if teacher.kind != "denoiser" or teacher.shape != data.shape:
        raise InputError(
            f"the teacher is a {teacher.kind} model for {_shape(teacher.shape)} images; needed is a denoiser for "
            f"{_shape(data.shape)}: train one with the diffusion recipe"
        )
    if recipe.sigma_min < teacher.sigma_min * (1 - 1e-6) or recipe.sigma_max > teacher.sigma_max * (1 + 1e-6):
        raise InputError(
            f"the teacher knows noise levels from {teacher.sigma_min:g} to {teacher.sigma_max:g}, the recipe asks for "
            f"{recipe.sigma_min:g} to {recipe.sigma_max:g}: set sigma_min and sigma_max inside the teacher's"
        )
    theirs = teacher.labels
    ours = class_names(data) if recipe.conditional else None
    if theirs is None and ours is not None:
        raise InputError(
            "the recipe is class-conditional, the teacher has no labels: train it with conditional=True, or leave it out"
        )
    if theirs is not None and ours is None:
        raise InputError(f"the teacher is class-conditional ({len(theirs)} labels): give the recipe conditional=True")
    # Numbers stand for classes that nobody has named: they agree with any names, in their order.
    named = teacher.config.labels is not None and data.label_names is not None
    if theirs is not None and ours is not None and theirs != ours and (named or len(theirs) != len(ours)):
        raise InputError(
            f"the teacher's labels are {few(theirs)}, the data's {few(ours)}: they must be the same; name the classes of the "
            "data so, in this order, or train a teacher on these data"
        )
    if recipe.augment and not teacher.config.network.augment_labels:
        raise InputError(f"recipe field augment is {recipe.augment:g}, the teacher has seen no augmented images: train it so")
    if recipe.guidance is not None and recipe.guidance != 1 and _label_dropout(teacher) == 0:
        raise InputError(
            f"guidance {recipe.guidance} needs a teacher that knows images without a class, this one was trained with "
            "label_dropout 0: train it with label_dropout=0.1"
        )


def _label_dropout(teacher: ConsistencyModel) -> float | None:
    """The share of images the teacher saw without their label, where its card tells."""
    recipe: Any = teacher.card.get("recipe")
    return recipe.get("label_dropout") if isinstance(recipe, dict) else None


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
