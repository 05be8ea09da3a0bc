"""Recipes of what came after the discrete family: published settings, on CIFAR-10 where they differ by data set.

As in :mod:`atonce.training.presets`, networks are sized to the data and ``sigma_data`` is measured. What else is not the
published setting: warm-ups are the published share of the budget where it is shorter than the published one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from atonce.core.errors import InputError
from atonce.networks.build import NetworkConfig
from atonce.training.recipe import RANDOM, Recipe

Network = str | NetworkConfig
SigmaData = float | Literal["measured"]


def sct(
    images: int = 204_800_000,
    batch: int = 512,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: Any = None,
    **changes: Any,
) -> Recipe:
    """Continuous-time consistency training, TrigFlow (Lu and Song 2024): the limit of pairs whose ends meet, from data.

    One Jacobian-vector product a step, tangents brought to one size, a learnt weight over noise levels. From random weights the
    network gets normalised scale-and-shift layers and is told t; started from a diffusion model it is that network, told what
    it was always told, with the sign of its output turned, and so exactly that model at first.

    Args:
        images: Budget in images seen; 204.8 M on CIFAR-10 in the paper.
        batch: Images per step; 512 in the paper.
        seed: Of weights, order and noise.
        network: A name or a configuration.
        sigma_data: Standard deviation of the data, or ``"measured"``.
        init: Model whose weights start the run.
        changes: Any other field of :class:`Recipe`.

    Returns:
        The recipe.
    """
    values: dict[str, Any] = {
        "pairs": "tangent",
        "preconditioning": "trigflow",
        "distance": "l2",
        "weight": "adaptive",
        "P_mean": -1.0,
        "P_std": 1.4,
        "tangent_warmup": min(5_120_000, images // 40),
        "beta2": 0.99,
        "ema": ("half-life-500000",),
        "ema_rampup": 0.05,
        "dropout": 0.2,
    } | changes
    return Recipe("sct", images, batch, seed, network, sigma_data=sigma_data, init=init, **values)


def scd(
    images: int = 204_800_000,
    batch: int = 512,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: Any = None,
    teacher: Any = None,
    **changes: Any,
) -> Recipe:
    """Continuous-time consistency distillation, TrigFlow (Lu and Song 2024): sCT with the slope of a diffusion model.

    The only one of these objectives whose target is right at every point, not just on average. The student starts from the
    teacher's weights. Guidance as in :func:`atonce.training.presets.cd`.

    Args:
        images: Budget in images seen; 204.8 M on CIFAR-10 in the paper.
        batch: Images per step; 512 in the paper.
        seed: Of order and noise.
        network: ``"auto"`` takes over the teacher's.
        sigma_data: ``"measured"`` takes over the teacher's.
        init: Model whose weights start the run; default: the teacher.
        teacher: The diffusion model: a model or what :func:`atonce.load` takes.
        changes: Any other field of :class:`Recipe`.

    Returns:
        The recipe.
    """
    values: dict[str, Any] = {"path": "euler", "dropout": 0.0, "teacher": teacher} | changes
    recipe = sct(images, batch, seed, network, sigma_data, teacher if init is None else init, **values)
    return dataclasses.replace(recipe, method="scd")


def meanflow(
    images: int = 819_200_000,
    batch: int = 1024,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: Any = None,
    form: Literal["meanflow", "imf"] = "meanflow",
    **changes: Any,
) -> Recipe:
    """MeanFlow (Geng et al. 2025): the average velocity between any two times, so a flow map, from data alone.

    ``model(x, sigma, to=...)`` then gives any later point of the trajectory, and several steps are jumps. Samples start at
    sigma_max = 80, flow time .988, where the published ones start at pure noise. With labels, ``guidance=2.0`` (or a range,
    which the network is told) is learnt without a second call at sampling: it needs ``label_dropout=0.1``. Nothing is augmented
    (published: 0.12). Started from a diffusion model the preconditioning is TrigFlow's, under which the start is exactly that
    model's velocity.

    Args:
        images: Budget in images seen; 819.2 M on CIFAR-10 in the paper's code.
        batch: Images per step; 1024 there.
        seed: Of weights, order and noise.
        network: A name or a configuration.
        sigma_data: Standard deviation of the data, or ``"measured"``.
        init: Model whose weights start the run.
        form: ``"imf"`` differentiates along the predicted velocity (improved mean flows).
        changes: Any other field of :class:`Recipe`.

    Returns:
        The recipe.

    Raises:
        InputError: The form is not known.
    """
    if form not in ("meanflow", "imf"):
        raise InputError(f"form is {form!r}, must be meanflow or imf")
    values: dict[str, Any] = {
        "pairs": "mean-flow",
        "preconditioning": "flow" if init in (None, RANDOM) else "trigflow",
        "direction": "sample" if form == "meanflow" else "predicted",
        "distance": "l2",
        "weight": "one",
        "P_mean": -2.0,
        "P_std": 2.0,
        "error_power": 0.75,
        "error_c": 1e-3,
        "optimizer": "adam",
        "lr": 6e-4,
        "lr_rampup": min(10_000_000, images // 80),
        "dropout": 0.2,
    } | changes
    return Recipe("meanflow", images, batch, seed, network, sigma_data=sigma_data, init=init, **values)


def imm(
    images: int = 409_600_000,
    batch: int = 1024,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: Any = None,
    **changes: Any,
) -> Recipe:
    """Inductive moment matching (Zhou et al. 2025): two jumps of a flow map lead groups of samples to one distribution.

    Form of the loss, kernel and weight, groups of 4 and k = 12 are the paper's; it has no published training code, so budget,
    batch and optimiser are ours. Flow times from .006 to .994 at sigma_data = 0.5 are noise levels from .003 to 82.8; here they
    end at 80. Arguments as in :func:`sct`.
    """
    values: dict[str, Any] = {
        "pairs": "groups",
        "preconditioning": "trigflow",
        "distance": "l2",
        "weight": "one",
        "sigma_min": 0.003,
        "dropout": 0.2,
    } | changes
    return Recipe("imm", images, batch, seed, network, sigma_data=sigma_data, init=init, **values)
