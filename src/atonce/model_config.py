"""What is needed to rebuild a model beside its weights, and which options it can honour."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.core.streams import Stream, uniform
from atonce.networks.build import NetworkConfig
from atonce.preconditioning import Preconditioning
from atonce.sampling.times import check_steps, check_times, denoiser_times, jump_times, restart_times

MOST = 1 << 53  # images of one call and their indices; memory sets a lower limit by far

Kind = Literal["consistency", "flow_map", "denoiser"]
Sampler = Literal["auto", "restart", "jump", "heun", "euler"]


@dataclass(frozen=True)
class Guidance:
    """How a class-conditional model is guided: D_u + w (D_c - D_u) of a denoiser, of which w = 1 is the plain conditional one.

    Attributes:
        form: ``"free"``: a denoiser that knows images without a class takes any scale, at two network calls; ``"fixed"``: the
            scale was distilled into the weights; ``"embedded"``: the network is told the scale.
        scales: Nothing, the one scale, or the lowest and highest.
    """

    form: Literal["free", "fixed", "embedded"]
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check that the scales fit the form.

        Raises:
            InputError: They do not.
        """
        wanted = {"free": 0, "fixed": 1, "embedded": 2}.get(self.form)
        if wanted is None or len(self.scales) != wanted or list(self.scales) != sorted(self.scales):
            raise InputError(
                f"guidance is {self.form!r} with scales {self.scales}: free has none, fixed one, embedded (low, high)"
            )


@dataclass(frozen=True)
class ModelConfig:
    """What is needed to rebuild a model, beside its weights."""

    network: NetworkConfig
    preconditioning: Preconditioning
    kind: Kind = "consistency"
    sigma_min: float = 0.002  # smallest noise level of training
    sigma_max: float = 80.0  # noise level at which samples start
    clip: tuple[float, float] | None = (-1.0, 1.0)  # range of the data; None for latents and signals
    labels: tuple[str, ...] | None = None  # names of the classes
    time_points: Mapping[int, tuple[float, ...]] = field(default_factory=dict)  # per number of steps; searched or chosen
    sampler: Sampler = "auto"  # what "auto" means for this model, where it is not the kind's usual one
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        """Check what the parts cannot see alone.

        Raises:
            InputError: A field is out of its range or does not fit another.
        """
        if self.kind not in ("consistency", "flow_map", "denoiser"):
            raise InputError(f"model kind {self.kind!r} is not known; known: consistency, flow_map, denoiser")
        if self.sampler not in get_args(Sampler):
            raise InputError(f"model sampler {self.sampler!r} is not known; known: {', '.join(get_args(Sampler))}")
        if (self.kind == "flow_map") != self.preconditioning.second:
            raise InputError(
                f"the model is a {self.kind}, its preconditioning has second={self.preconditioning.second}: the network of a "
                "flow map is told a second time, and no other"
            )
        if self.preconditioning.second and not self.network.second_time:
            raise InputError("the preconditioning has second=True, the network second_time=False: it must have this input")
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}: 0 < sigma_min < sigma_max must hold"
            )
        if self.labels is not None and len(self.labels) != self.network.labels:
            raise InputError(f"{len(self.labels)} label names are given, but the network has {self.network.labels} classes")
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise InputError(f"clip is {self.clip}, must be a pair (low, high) or None")
        if self.guidance is not None and not self.network.labels:
            raise InputError("guidance needs a class-conditional network, this one has no labels")
        if (self.guidance is not None and self.guidance.form == "embedded") != self.network.guidance:
            raise InputError(f"guidance is {self.guidance}, the network has guidance={self.network.guidance}: they must agree")
        for steps, points in self.time_points.items():
            if check_times(points, self.preconditioning.sigma_end, self.sigma_max) != list(points) or len(points) != steps:
                raise InputError(
                    f"time_points for {steps} steps is {points}: give the {steps} starting points of the intervals"
                )


def guidance_scale(known: Guidance | None, guidance: float | Tensor | None, label: Tensor | None) -> float | Tensor | None:
    """The scale that the network or the combination of two calls is to use.

    Args:
        known: How the model is guided, if it is.
        guidance: The scale a caller asks for, one number or [B].
        label: The classes of the images, int64 [B].

    Returns:
        The scale; ``None`` where there is nothing to do.

    Raises:
        InputError: The model cannot honour it.
    """
    if guidance is None:
        # An embedded scale must be something: no guidance where that is in the range, else what is nearest.
        return None if known is None or known.form != "embedded" else min(max(1.0, known.scales[0]), known.scales[1])
    values = torch.as_tensor(guidance, dtype=torch.float32)
    shown = f"guidance={float(values):g}" if values.numel() == 1 else "guidance"
    if known is None:
        raise InputError(f"{shown}: this model was not trained with guidance; leave it out")
    if label is None or bool((label < 0).any()):
        raise InputError(f"{shown} needs a class for each image: give labels")
    if not bool(torch.isfinite(values).all()) or values.numel() not in (1, label.shape[0]):
        raise InputError(f"{shown} must be one finite number, or one for each of {label.shape[0]} images")
    if known.form == "fixed":
        if not bool((values - known.scales[0]).abs().max() < 1e-6):
            raise InputError(f"{shown}: scale {known.scales[0]:g} was fixed when this model was distilled; leave it out")
        return None
    if known.form == "embedded" and not bool(((values >= known.scales[0]) & (values <= known.scales[1])).all()):
        raise InputError(f"{shown} is out of range: this model knows {known.scales[0]:g} to {known.scales[1]:g}")
    return float(values) if values.numel() == 1 else values.to(label.device)


def check_to(to: float, kind: Kind, end: float, sigma: Tensor) -> None:
    """Refuse a noise level to map to that a model cannot reach.

    Args:
        to: The noise level.
        kind: Of the model.
        end: Where its trajectories end.
        sigma: Noise levels of the states.

    Raises:
        InputError: The model is no flow map, or the level is not between its end and the states'.
    """
    if kind != "flow_map":
        raise InputError(f"to={to:g} asks for a point inside the trajectory: this is a {kind} model, only flow maps can")
    if not end <= to <= float(sigma.min()) * (1 + 1e-6):
        raise InputError(f"to is {to:g}, must be from {end:g} to sigma, which is {float(sigma.min()):g}")


def drawn_labels(keys: int | Tensor, index: Tensor, classes: int) -> Tensor:
    """The classes of images for which none are given, uniform and a function of seed and index.

    Args:
        keys: The seed, or one for each image, int64 [n].
        index: Indices of the images, int64 [n].
        classes: Classes of the model.

    Returns:
        int64 [n].
    """
    parts = (slice(start, start + (1 << 16)) for start in range(0, len(index), 1 << 16))  # the hash needs 32 bytes an image
    drawn = [uniform(keys[p] if isinstance(keys, Tensor) else keys, index[p], 1, Stream.LABEL)[:, 0] for p in parts]
    return (torch.cat(drawn) * classes).long() if drawn else torch.zeros(0, dtype=torch.int64)


def default_batch(device: torch.device) -> int:
    """Images computed at once where nobody says: 256 on a GPU, 64 elsewhere."""
    return 256 if device.type == "cuda" else 64


def noise_keys(n: int, seed: int, first: int, seeds: Sequence[int] | Tensor | None) -> tuple[Tensor, int | Tensor]:
    """Indices of images and what their noise is keyed by.

    Args:
        n: Number of images.
        seed: Seed of all.
        first: Index of the first.
        seeds: One seed for each image, instead of both.

    Returns:
        Sample indices int64 [n], and the seed or int64 [n].

    Raises:
        InputError: A value is no whole number in its range, or there are more or fewer seeds than images.
    """
    whole(n, "n", 0, MOST)
    whole(first, "first", 0, MOST)
    whole(seed, "seed")
    if seeds is None:
        return torch.arange(first, first + n), seed
    keys = _whole_tensor(seeds, "seeds").cpu()
    if keys.numel() != n:
        raise InputError(f"{keys.numel()} seeds are given for {n} images: give one for each")
    return torch.zeros(n, dtype=torch.int64), keys


def check_noise(noise: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check the noise that a caller gives.

    Args:
        noise: Unit normal noise, or ``None``.
        shape: Shape [n, C, H, W] that it must have.

    Raises:
        InputError: It is no finite float tensor of this shape.
    """
    if noise is None:
        return
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        found = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise InputError(f"noise is {found}, must be a float tensor {list(shape)} of unit normal values")
    if tuple(noise.shape) != shape:
        raise InputError(f"noise has shape {tuple(noise.shape)}, must be {shape}")
    if not bool(torch.isfinite(noise).all()):
        raise InputError("noise has values that are not finite")


def no_class_is_known(card: Mapping[str, Any]) -> bool | None:
    """Whether a class-conditional model was trained on images without a class too.

    A model that was distilled saw what its recipe showed it, not what its teacher saw.

    Args:
        card: The model's card.

    Returns:
        What its recipe says; ``None`` where the card has none.
    """
    recipe = card.get("recipe")
    dropout = recipe.get("label_dropout", 0.0) if isinstance(recipe, Mapping) else None
    return None if not isinstance(dropout, (int, float)) else dropout > 0


def refuse_no_class(card: Mapping[str, Any], label: Tensor | None) -> None:
    """Refuse negative labels, "no class", where the model was never trained without one.

    Args:
        card: The model's card.
        label: Classes int64 [n].

    Raises:
        InputError: There is one.
    """
    if label is not None and no_class_is_known(card) is False and bool((label < 0).any()):
        raise InputError(f"label {int(label.min())} means no class, and this model was never trained without: give classes")


def sample_times(config: ModelConfig, steps: int, sigmas: Sequence[float] | None, sampler: str) -> list[float]:
    """Where the intervals of sampling start.

    Args:
        config: Of the model.
        steps: Intervals.
        sigmas: Starting noise levels, instead.
        sampler: Name of the sampler.

    Returns:
        Noise levels, descending; those of a denoiser hold the end of the last interval too.

    Raises:
        InputError: The sampler does not fit the model, or a value is out of range.
    """
    denoiser, end = config.kind == "denoiser", config.preconditioning.sigma_end
    jumps = config.kind == "flow_map"
    allowed = ("auto", "heun", "euler") if denoiser else ("auto", "restart", *(["jump"] if jumps else []))
    if sampler not in allowed:
        raise InputError(f"sampler {sampler!r} does not fit a {config.kind} model; possible: {', '.join(allowed)}")
    check_steps(steps)
    if sigmas is not None:
        times = check_times(sigmas, end, config.sigma_max)
        return [*times, 0.0] if denoiser else times
    if steps in config.time_points:
        return [*config.time_points[steps], *([0.0] if denoiser else [])]
    if denoiser:
        return denoiser_times(steps, config.sigma_min, config.sigma_max)
    if jumps and sampler != "restart":
        return jump_times(steps, config.sigma_max)
    return restart_times(steps, config.sigma_max, config.preconditioning.sigma_data)


def student_for(card: Mapping[str, Any], names: Collection[str], steps: int, own_times: bool) -> str | None:
    """The weights for a number of steps, where each student of progressive distillation has learnt one.

    Args:
        card: The model's card; ``student_steps`` says how many steps the default weights have learnt.
        names: Further sets of weights; those of students are called ``4-steps``.
        steps: Intervals that are asked for.
        own_times: Whether the caller gives time points of his own, which no student need have learnt.

    Returns:
        A name; ``None`` for the default weights.

    Raises:
        InputError: No student has learnt this number.
    """
    learnt = card.get("student_steps")
    if not isinstance(learnt, int) or steps == learnt:
        return None
    if (name := f"{steps}-steps") in names or own_times:
        return name if name in names else None
    known = sorted([learnt, *(int(found[1]) for n in names if (found := re.fullmatch(r"(\d+)-steps", n)))])
    raise InputError(
        f"steps is {steps}, and each student of progressive distillation takes the steps it has learnt, here "
        f"{', '.join(map(str, known))}: choose one of these, or name the weights with ema"
    )


def _whole_tensor(values: Any, name: str) -> Tensor:
    """Whole numbers as int64 [n]."""
    try:
        found = torch.as_tensor(values).reshape(-1)
        fits = not found.numel() or not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"{name} is {values!r}, must be whole numbers of at most 64 bits")
    return found.to(torch.int64)


def checked_labels(label: Tensor | Sequence[int] | int | None, n: int, classes: int) -> Tensor | None:
    """Labels of n images as int64 [n]; ``None`` stays ``None``.

    Args:
        label: One label, or one for each image; negative means "no class".
        n: Number of images.
        classes: Classes of the model, 0 for an unconditional one.

    Returns:
        The labels, on the device they came on.

    Raises:
        InputError: They do not fit.
    """
    if label is None:
        return None
    if not classes:
        raise InputError("labels are given, but this model is unconditional: leave them out")
    values = _whole_tensor(label, "labels")
    if values.numel() == 1:
        values = values.expand(n)
    if values.numel() != n:
        raise InputError(f"{values.numel()} labels are given for {n} images: give one, or one for each image")
    if n and values.max() >= classes:
        raise InputError(f"label {int(values.max())} is out of range: this model has {classes} classes, 0 to {classes - 1}")
    return values
