"""Recipes by name. Each returns one :class:`Recipe` with the published settings, on CIFAR-10 where they differ by data set.

What is not the published setting:

- ``network`` is sized to the data and ``sigma_data`` measured (published: 0.5); nothing is flipped, where CT and CD flip.
- ``ict`` caps its average's half-life at 5 % of the images seen, so that short runs forget their first weights (published: no
  cap; over the published budget it acts during the first half, 203 M images).
- ``ct`` and ``cd`` have the L2 distance, since the published best, LPIPS, needs weights.
- ``diffusion`` does not augment (published: 0.12, for photographs; a network that is told of it must bear its labels), and its
  learning rate rises over a twentieth of a budget below 200 M images (published: over 10 M).
- ``progressive`` starts from 64 steps (the baseline of the consistency papers: 4,096), and its rate cools down by a cosine.
- ``digits`` is sized for minutes.
"""

from __future__ import annotations

from typing import Any, Literal

from atonce.core.errors import InputError
from atonce.networks.build import NetworkConfig
from atonce.training.continuous import imm as imm
from atonce.training.continuous import meanflow as meanflow
from atonce.training.continuous import scd as scd
from atonce.training.continuous import sct as sct
from atonce.training.recipe import Recipe

Network = str | NetworkConfig
SigmaData = float | Literal["measured"]


def ict(
    images: int = 409_600_000,
    batch: int = 1024,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: str | None = None,
    **changes: Any,
) -> Recipe:
    """Improved consistency training (Song and Dhariwal 2023): training from data at its best.

    No moving average in the target, pseudo-Huber distance, 1 / (t - r) weight, log-normal intervals, N doubling up to 1280.

    Args:
        images: Budget in images seen; 409.6 M on CIFAR-10 in the paper.
        batch: Images per step; 1024 in the paper.
        seed: Of weights, order and noise.
        network: A name or a configuration.
        sigma_data: Standard deviation of the data, or ``"measured"``.
        init: Model whose weights start the run.
        changes: Any other field of :class:`Recipe`.

    Returns:
        The recipe.
    """
    values: dict[str, Any] = {"dropout": 0.3, "ema": (0.99993,), "ema_rampup": 0.05} | changes
    return Recipe("ict", images, batch, seed, network, sigma_data=sigma_data, init=init, **values)


def ct(
    images: int = 409_600_000,
    batch: int = 512,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: str | None = None,
    **changes: Any,
) -> Recipe:
    """Consistency training (Song et al. 2023, Algorithm 3): the target is a moving average, N grows as the square root of time.

    The paper's best distance is LPIPS; L2 is the one that needs no weights. Arguments as in :func:`ict`.
    """
    values: dict[str, Any] = {
        "pairs": "karras",
        "target": "ema",
        "distance": "l2",
        "weight": "one",
        "curriculum": "ct",
        "s0": 2,
        "s1": 150,
        "mu": "ct-code",
        "mu0": 0.9,
        "lr": 4e-4,
    } | changes
    return Recipe("ct", images, batch, seed, network, sigma_data=sigma_data, init=init, **values)


def ect(
    images: int = 25_600_000,
    batch: int = 128,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: str | None = None,
    form: Literal["cifar", "hour", "imagenet"] = "cifar",
    **changes: Any,
) -> Recipe:
    """Easy consistency tuning (Geng et al. 2024): continuous t, r(t) closing in by stages, the trajectory ends at 0.

    Meant to start from a diffusion model (``init``).

    Args:
        images: Budget in images seen; 25.6 M on CIFAR-10 in the paper, 1,024,000 in its recipe of one hour, which is what
            ``form="hour"`` makes of the default.
        batch: Images per step; 128 in the paper.
        seed: Of weights, order and noise.
        network: A name or a configuration.
        sigma_data: Standard deviation of the data, or ``"measured"``.
        init: Model whose weights start the run.
        form: Which of the published settings. ``"cifar"``: pairs close in over eight stages, (t - r) / t halving with each.
            ``"hour"``: one stage with pairs 1/256 apart from the start, and a shorter average. ``"imagenet"``: the distance
            shrinks to a quarter with each of four stages, weight 1 / c_out^2, a pseudo-Huber constant of 0.06, Adam.
        changes: Any other field of :class:`Recipe`.

    Returns:
        The recipe.

    Raises:
        InputError: The form is not known.
    """
    values: dict[str, Any] = {"pairs": "ect", "preconditioning": "edm", "huber_c": 0.0, "dropout": 0.2}
    match form:
        case "cifar":
            pass
        case "hour":
            images = 1_024_000 if images == 25_600_000 else images
            values |= {"ect_q": 256.0, "ect_stages": 1, "ema": (0.9993,)}
        case "imagenet":
            values |= {"ect_q": 4.0, "ect_stages": 4, "weight": "edm", "huber_c": 0.06, "optimizer": "adam"}
        case _:
            raise InputError(f"form is {form!r}, must be cifar, hour or imagenet")
    return Recipe("ect", images, batch, seed, network, sigma_data=sigma_data, init=init, **values | changes)


def cd(
    images: int = 409_600_000,
    batch: int = 512,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: Any = None,
    teacher: Any = None,
    **changes: Any,
) -> Recipe:
    """Consistency distillation (Song et al. 2023, Algorithm 2): each pair is a step of a diffusion model's ODE.

    Heun steps on N = 18 points; the student starts from the teacher's weights. The paper's best distance is LPIPS; L2 is the
    one that needs no weights, and ``distance="effnet-lite0"`` is a perceptual one that runs offline. The paper's target is the
    student itself on CIFAR-10 (mu = 0, the default here), and ``target="ema", mu=0.95`` on larger images. With a teacher that
    knows labels, ``guidance=2.0`` distils its guided ODE, ``guidance=(1.0, 4.0)`` all scales of a range.

    Args:
        images: Budget in images seen; 409.6 M on CIFAR-10 in the paper.
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
    values: dict[str, Any] = {
        "pairs": "karras",
        "path": "heun",
        "target": "student",
        "distance": "l2",
        "weight": "one",
        "curriculum": "fixed",
        "s0": 2,
        "s1": 17,
        "lr": 4e-4,
        "teacher": teacher,
    } | changes
    return Recipe("cd", images, batch, seed, network, sigma_data=sigma_data, init=teacher if init is None else init, **values)


def progressive(
    images: int = 153_600_000,
    batch: int = 512,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: Any = None,
    teacher: Any = None,
    **changes: Any,
) -> Recipe:
    """Progressive distillation (Salimans and Ho 2022): students with 32, 16, ..., 1 steps, each taught by the one before.

    The budget is shared equally; the last student is the model, those of two and four steps are kept beside it. The default
    budget is the paper's 50,000 steps for each halving. Arguments as in :func:`cd`.
    """
    values: dict[str, Any] = {
        "pairs": "halving",
        "path": "two-steps",
        "target": "previous",
        "distance": "l2",
        "weight": "truncated-snr",
        "preconditioning": "edm",
        "optimizer": "adam",
        "lr": 1e-4,
        "lr_cooldown": 1.0,
        "ema": (0.0,),
        "teacher": teacher,
    } | changes
    return Recipe(
        "progressive", images, batch, seed, network, sigma_data=sigma_data, init=teacher if init is None else init, **values
    )


def diffusion(
    images: int = 200_000_000,
    batch: int = 512,
    seed: int = 0,
    network: Network = "auto",
    sigma_data: SigmaData = "measured",
    init: str | None = None,
    **changes: Any,
) -> Recipe:
    """A diffusion model by denoising (Karras et al. 2022): the teacher, or the start of tuning. Arguments as in :func:`ict`."""
    values: dict[str, Any] = {
        "pairs": "denoising",
        "path": "data",
        "target": "data",
        "distance": "l2",
        "weight": "edm",
        "preconditioning": "edm",
        "P_mean": -1.2,
        "P_std": 1.2,
        "optimizer": "adam",
        "lr": 1e-3,
        "lr_rampup": min(10_000_000, images // 20),
        "ema": ("half-life-500000",),
        "ema_rampup": 0.05,
        "dropout": 0.13,
    } | changes
    return Recipe("diffusion", images, batch, seed, network, sigma_data=sigma_data, init=init, **values)


def digits(images: int = 112_000, batch: int = 64, seed: int = 0, **changes: Any) -> Recipe:
    """iCT, sized for the bundled digits on a CPU: what ``atonce demo`` trains, and, with more images, the gallery model.

    What differs from the paper's settings was measured to help in minutes: small batches at a high rate that cools down, and a
    curriculum that starts at 20 intervals, since a coarse grid blurs the samples however long it is trained on.

    Args:
        images: Budget in images seen.
        batch: Images per step.
        seed: Of weights, order and noise.
        changes: Any other field of :class:`Recipe`.

    Returns:
        The recipe.
    """
    values: dict[str, Any] = {
        "network": "tiny",
        "s0": 20,
        "s1": 320,
        "lr": 2e-3,
        "lr_cooldown": 0.6,
        "dropout": 0.0,
        "ema": (0.999,),
        "ema_rampup": 0.05,
    } | changes
    return ict(images, batch, seed, **values)


PRESETS = {
    "ict": ict,
    "ct": ct,
    "ect": ect,
    "cd": cd,
    "progressive": progressive,
    "diffusion": diffusion,
    "digits": digits,
    "sct": sct,
    "scd": scd,
    "meanflow": meanflow,
    "imm": imm,
}
