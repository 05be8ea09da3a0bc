"""From a batch of indices to its loss: what is drawn for each image, and the objective that a recipe asks for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atonce.core.streams import Stream, dropout_masks, normal, uniform
from atonce.data.augment import augment
from atonce.data.loader import DeviceData
from atonce.objectives import weights
from atonce.objectives.discrete import Function, Path, Terms, discrete, same_noise, teacher_step, to_data
from atonce.objectives.imm import moment_matching
from atonce.objectives.meanflow import average_velocity, guided_velocity, mean_flow
from atonce.objectives.progressive import truncated_snr, two_steps
from atonce.objectives.trigflow import continuous, same_noise_slope, teacher_slope
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_middle, draw_pairs, times_of_groups
from atonce.training.teacher import denoise

if TYPE_CHECKING:
    from atonce.training.engine import Engine


@dataclass(frozen=True)
class Drawn:
    """A batch with everything random in it, each a function of (seed, index) alone.

    Attributes:
        index: Global sample indices, int64 [B], on the CPU.
        y: Clean images [B, C, H, W], channels last.
        z: Unit normal noise, likewise.
        t: Noise levels of the student [B].
        r: Noise levels of the target [B].
        condition: What the network is told of each image beside its noise level.
        scale: Scale of the teacher's guidance, one or [B].
        masks: Dropout masks, or ``None``.
    """

    index: Tensor
    y: Tensor
    z: Tensor
    t: Tensor
    r: Tensor
    condition: dict[str, Any]
    scale: float | Tensor | None
    masks: list[Tensor] | None


def draw(recipe: Recipe, stage: Stage, data: DeviceData, index: Tensor, device: torch.device, mask_sizes: list[int]) -> Drawn:
    """The images with the given global indices, and all that is drawn for them.

    It does not matter which process or pass an image falls to.

    Args:
        recipe: A resolved recipe.
        stage: The stage of its curriculum.
        data: Training images on the device.
        index: Global sample indices, int64 [B], on the CPU.
        device: Where the network is.
        mask_sizes: Elements of each of its dropout masks.

    Returns:
        The batch.
    """
    y, labels = data.batch(index)
    where = index.to(device)
    z = normal(recipe.seed, where, tuple(y.shape[1:]), Stream.NOISE)
    t, r = (s.to(device, torch.float32) for s in draw_pairs(recipe, stage, index))
    if not recipe.conditional:
        labels = None
    elif labels is not None and recipe.label_dropout:
        dropped = uniform(recipe.seed, where, 1, Stream.LABEL)[:, 0] < recipe.label_dropout
        labels = torch.where(dropped, -1, labels)
    condition: dict[str, Any] = {"label": labels}
    if recipe.augment:
        y, condition["augment"] = augment(y, recipe.seed, index, recipe.augment)
    scale: float | Tensor | None = None
    if isinstance(recipe.guidance, tuple):
        low, high = recipe.guidance
        scale = (low + (high - low) * uniform(recipe.seed, where, 1, Stream.GUIDANCE)[:, 0]).float()
        condition["guidance"] = scale
    elif recipe.guidance is not None:
        scale = recipe.guidance
    masks = dropout_masks(recipe.seed, where, mask_sizes, recipe.dropout) if recipe.dropout else None
    y, z = (v.contiguous(memory_format=torch.channels_last) for v in (y, z))
    return Drawn(index, y, z, t, r, condition, scale, masks)


def discrete_terms(engine: Engine, drawn: Drawn, stage: Stage, dtype: torch.dtype) -> Terms:
    """The discrete family: a student, a target and a path between them.

    Args:
        engine: Networks, teacher and preconditioning of the run.
        drawn: The batch.
        stage: Its stage.
        dtype: Precision of the networks.

    Returns:
        Loss and distance [B].
    """
    recipe, masks, t, r = engine.recipe, drawn.masks, drawn.t, drawn.r
    condition = {"dtype": dtype, **drawn.condition}
    # The same masks go to both passes: the pair then differs by its noise levels only.
    student = functools.partial(engine.preconditioning, engine.student, **condition, masks=masks)
    if masks is not None and not recipe.shared_dropout:
        masks = dropout_masks(recipe.seed, drawn.index.to(engine.device), engine.mask_sizes, recipe.dropout, step=1)
    target = functools.partial(engine.preconditioning, engine.target_student, **condition, masks=masks)
    return discrete(
        student,
        target if recipe.target in ("student", "ema") else None,
        drawn.y,
        drawn.z,
        t,
        r,
        path=_path(recipe, stage, t, taught(engine, drawn, dtype), target),
        distance=engine.distance,
        weight=_weight(recipe, t, r, engine.sigma_data),
    )


def tangent_terms(engine: Engine, drawn: Drawn) -> Terms:
    """Continuous time: the tangent of the pair, from data (sCT) or from a teacher's slope (sCD). In float32 throughout.

    Args:
        engine: Networks, teacher and preconditioning of the run.
        drawn: The batch.

    Returns:
        Loss and distance [B].
    """
    recipe, told = engine.recipe, {**drawn.condition, "masks": drawn.masks}
    teacher = taught(engine, drawn, torch.float32)
    c_noise = engine.preconditioning.c_noise(drawn.t)
    return continuous(
        functools.partial(engine.student, **told),
        drawn.y,
        drawn.z,
        drawn.t,
        preconditioning=engine.preconditioning,
        slope=same_noise_slope(drawn.y, drawn.z, engine.sigma_data) if teacher is None else teacher_slope(teacher, drawn.t),
        warmth=min(1.0, engine.images_seen / recipe.tangent_warmup) if recipe.tangent_warmup else 1.0,
        norm=recipe.tangent_norm,
        log_weight=None if engine.head is None else engine.head(c_noise),
        how=engine.how,
        plain=functools.partial(engine.network, **told),
    )


def flow_terms(engine: Engine, drawn: Drawn) -> Terms:
    """The average velocity between two times (MeanFlow, iMF), guided by itself where the recipe says so. In float32 throughout.

    Args:
        engine: Network and preconditioning of the run.
        drawn: The batch.

    Returns:
        Loss and distance [B].
    """
    recipe, told = engine.recipe, {**drawn.condition, "masks": drawn.masks}
    u, plain = (average_velocity(engine.preconditioning, network, **told) for network in (engine.student, engine.network))
    guide = None
    label = drawn.condition["label"]
    if drawn.scale is not None and label is not None:
        nothing = {**told, "label": torch.full_like(label, -1)}
        without = average_velocity(engine.preconditioning, engine.network, **nothing)
        scale = torch.as_tensor(drawn.scale, device=engine.device).expand(len(label))
        guide = guided_velocity(plain, without, scale, label >= 0, recipe.direction)
    return mean_flow(
        u,
        drawn.y,
        drawn.z,
        drawn.t / (1 + drawn.t),
        drawn.r / (1 + drawn.r),
        direction=recipe.direction,
        guide=guide,
        p=recipe.error_power,
        c=recipe.error_c,
        how=engine.how,
        plain=plain,
    )


def group_terms(engine: Engine, drawn: Drawn) -> Terms:
    """Groups whose ends are to have one distribution (IMM). In float32 throughout.

    Args:
        engine: Network and preconditioning of the run.
        drawn: The batch, in whole groups.

    Returns:
        Loss and distance [B].
    """
    recipe = engine.recipe
    s = times_of_groups(recipe, drawn.index)[2].to(drawn.t)

    def jump(x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
        return engine.preconditioning(engine.student, x, sigma, to=to, **drawn.condition, masks=drawn.masks)

    # Rounded to float32, r may pass s by its last bit.
    r = torch.maximum(drawn.r, s)
    return moment_matching(
        *(jump, drawn.y, drawn.z, drawn.t, r, s),
        preconditioning=engine.preconditioning,
        group=recipe.group,
        a=recipe.imm_a,
        b=recipe.imm_b,
    )


def taught(engine: Engine, drawn: Drawn, dtype: torch.dtype) -> Function | None:
    """D(x, sigma) of the run's teacher for a batch, told and guided as the student is; ``None`` without a teacher."""
    if engine.teacher is None:
        return None
    told = drawn.condition.get("augment")
    label = drawn.condition["label"]
    return functools.partial(denoise, engine.teacher, label=label, guidance=drawn.scale, dtype=dtype, augment=told)


def _path(recipe: Recipe, stage: Stage, t: Tensor, teacher: Function | None, target: Function) -> Path:
    match recipe.path:
        case "data":
            return to_data
        case "same-noise":
            return same_noise
        case "euler" | "heun":
            assert teacher is not None  # checked at the start
            return teacher_step(teacher, 1 if recipe.path == "euler" else 2)
        case "two-steps":
            assert teacher is not None
            return two_steps(teacher if stage.index == 0 else target, draw_middle(recipe, stage, t).to(t))


def _weight(recipe: Recipe, t: Tensor, r: Tensor, sigma_data: float) -> Tensor:
    match recipe.weight:
        case "inverse-delta":
            return weights.inverse_delta(t, r)
        case "edm":
            return weights.edm(t, sigma_data)
        case "truncated-snr":
            return truncated_snr(t)
        case _:
            return torch.ones_like(t)
