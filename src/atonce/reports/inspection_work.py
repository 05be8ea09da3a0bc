"""The work of an inspection: every part of it is computed once, with progress counted in images through the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.core.images import from_uint8, to_uint8
from atonce.core.progress import Progress
from atonce.core.streams import Stream, normal, permutation
from atonce.editing.latent import slerp
from atonce.model import ConsistencyModel
from atonce.reports import inspection_paths as paths
from atonce.reports.inspection import ByClass, Inspection, Interpolation, Rung
from atonce.reports.inspection_gaussian import fit_gaussian
from atonce.reports.inspection_material import Material
from atonce.reports.inspection_measures import Curves, Neighbours, Sensitivity, curves, neighbours, sensitivity

LEVELS = 17  # noise levels of the curves
CURVE_IMAGES = 64  # held-out images behind them
ODE_STEPS = 18  # intervals where a denoiser is integrated
CLASSES = 20  # most classes shown
_LARGEST_SAMPLES = 4096
_NOISED, _NOISE_LEVELS = 2, 10
_WAYS, _WAY_STEPS = 2, 4
_TRAJECTORIES = 8
_GRID = 4  # regions of the noise along each side
_LATER = 1 << 20  # index from which on noise is for other things than the grid of samples
_REAL, _MOST_TRAINING = 256, 100_000  # images compared and training images searched for neighbours


@dataclass(frozen=True)
class _Subject:
    """The model with what is the same in every part."""

    model: ConsistencyModel
    seed: int
    steps: int

    def noise(self, part: int, n: int) -> Tensor:
        """Unit noise [n, C, H, W] for a part."""
        index = torch.arange(n) + _LATER + 4096 * part
        return normal(self.seed, index, self.model.shape, Stream.SAMPLE)

    def labels(self, n: int) -> Tensor | None:
        """Classes that go through all of them in turn; ``None`` for an unconditional model."""
        return None if self.model.labels is None else torch.arange(n) % len(self.model.labels)

    def label(self, i: int) -> int | None:
        """The class of one image."""
        return None if self.model.labels is None else i % len(self.model.labels)

    def generate(self, noise: Tensor, labels: Tensor | None, guidance: float | None = None) -> Tensor:
        """Images [n, C, H, W] on the CPU from unit noise, by the model's usual sampler."""
        return self.model.sample(len(noise), self.steps, self.seed, noise=noise, labels=labels, guidance=guidance).cpu()

    def calls(self, steps: int | None = None) -> int:
        """Network calls for one image in some number of steps, without guidance."""
        steps = steps or self.steps
        return solver_calls(self.model, steps) if self.model.kind == "denoiser" else steps


def solver_calls(model: ConsistencyModel, steps: int) -> int:
    """Network calls of a denoiser's sampler for one image."""
    return steps if paths.solver_order(model) == 1 else 2 * steps - 1


def default_steps(model: ConsistencyModel) -> int:
    """Intervals of the model's usual sampler: one, and for a denoiser that was not distilled into few steps, 18."""
    return ODE_STEPS if model.kind == "denoiser" and 1 not in model.config.time_points else 1


def check_inspection(model: ConsistencyModel, teacher: ConsistencyModel | None, seed: int, samples: int) -> None:
    """Refuse what cannot be inspected, before any work is done.

    Args:
        model: The model.
        teacher: Its teacher, if one is given.
        seed: Of all noise.
        samples: Images in the grid.

    Raises:
        InputError: Something does not fit.
    """
    if not 2 <= samples <= _LARGEST_SAMPLES:
        raise InputError(f"samples is {samples}, must be from 2 to {_LARGEST_SAMPLES:,}")
    if seed < 0:
        raise InputError(f"seed is {seed}, must be at least 0")
    if model.image_shape[0] not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, the model's images have {model.image_shape[0]}: it has no page")
    if teacher is not None:
        paths.check_teacher(model, teacher)


def inspect_model(
    model: ConsistencyModel,
    material: Material | None = None,
    *,
    missing: str = "",
    teacher: ConsistencyModel | None = None,
    seed: int = 0,
    samples: int = 64,
    quiet: bool = False,
    told: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Compute what the page of a model shows.

    Args:
        model: The model.
        material: Real images; without them the parts that need some are left out.
        missing: Why there are none, for the page.
        teacher: The denoiser it was distilled from.
        seed: Of all noise and choices.
        samples: Images in the grid; their nearest training images are searched.
        quiet: Show no progress.
        told: Told how many images have gone through a network, and how many will; what it raises ends the work.

    Returns:
        The inspection.

    Raises:
        InputError: Model, teacher or a number does not fit.
    """
    check_inspection(model, teacher, seed, samples)
    subject = _Subject(model, seed, default_steps(model))
    networks = [model.network]
    if teacher is not None:
        networks.append(teacher.to(model.device).network)
    parts = _parts(subject, material, teacher, samples)
    with _counted(networks, sum(planned for planned, _ in parts.values()), quiet, told):
        made: dict[str, Any] = {"samples": parts.pop("samples")[1]()}
        found = None if material is None else _neighbours(subject, material, made["samples"])
        made |= {name: work() for name, (_, work) in parts.items()}
    gap, full = made.pop("curves", (None, None))
    none = dict.fromkeys(("teacher", "by_class"))
    return Inspection(
        model=model,
        seed=seed,
        steps=subject.steps,
        curves=gap,
        neighbours=found,
        material=material,
        missing="" if material is not None else missing or "no data are given",
        full_covariance=full,
        **{"noised": (), **none, **made},
    )


def _parts(
    subject: _Subject, material: Material | None, teacher: ConsistencyModel | None, samples: int
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """The parts that use a network: how many images will go through it, and the work."""
    model, calls = subject.model, subject.calls()
    denoiser = model.kind == "denoiser"
    ladder = (2, 4, 8, ODE_STEPS) if subject.steps > 1 else (1, 2, 4)
    way_steps = subject.steps if denoiser else _WAY_STEPS
    rows, columns = (3, 7) if denoiser else (4, 9)
    regions, noises = _GRID**2, 2 if denoiser else 4
    parts: dict[str, tuple[int, Callable[[], Any]]] = {
        "samples": (samples * calls, lambda: model.sample(samples, subject.steps, subject.seed).cpu()),
        "ladder": (8 * sum(map(subject.calls, ladder)), lambda: _ladder(subject, ladder)),
        "ways": (_WAYS * subject.calls(way_steps), lambda: _ways(subject, way_steps)),
        "interpolation": (rows * columns * calls, lambda: _interpolation(subject, rows, columns)),
        "sensitivity": (noises * (regions + 1) * calls, lambda: _sensitivity(subject, noises)),
    }
    if model.labels is not None:
        classes = paths.evenly(len(model.labels), CLASSES)
        scales = guidance_scales(model)
        both = 2 if model.config.guidance is not None and model.config.guidance.form == "free" else 1
        planned = len(classes) * (6 + both * len(scales)) * calls
        parts["by_class"] = planned, lambda: _by_class(subject, classes, scales)
    if material is not None:
        images = min(CURVE_IMAGES, len(material.held_out))
        parts["noised"] = min(_NOISED, images) * _NOISE_LEVELS, lambda: _noised(subject, material)
        parts["curves"] = images * LEVELS, lambda: _curves(subject, material)
    if teacher is not None:
        guided = 2 if paths.teacher_guidance(model, teacher) is not None else 1
        planned = _TRAJECTORIES * (ODE_STEPS + guided * solver_calls(teacher, ODE_STEPS))
        noise, labels = subject.noise(4, _TRAJECTORIES), subject.labels(_TRAJECTORIES)
        parts["teacher"] = planned, lambda: paths.teacher_path(model, teacher, noise, labels, ODE_STEPS)
    return parts


@contextlib.contextmanager
def _counted(
    networks: list[nn.Module], planned: int, quiet: bool, told: Callable[[int, int], None] | None = None
) -> Iterator[None]:
    """Progress in images that went through a network, counted at the networks themselves."""
    with Progress("inspecting", planned, "img", quiet=quiet) as bar:

        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            bar.update(bar.done + len(inputs[0]))
            if told is not None:
                told(int(bar.done), planned)

        hooks = [network.register_forward_hook(see) for network in networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _ladder(subject: _Subject, ladder: tuple[int, ...]) -> tuple[Rung, ...]:
    rungs: list[Rung] = []
    for steps in ladder:
        seen: list[dict[str, Any]] = []
        images = subject.model.sample(
            8, steps, subject.seed, first=_LATER, labels=subject.labels(8), callback=seen.append
        ).cpu()
        change = None if not rungs else float((images - rungs[-1].images).double().square().mean().sqrt())
        rungs.append(Rung(steps, seen[-1]["calls"], tuple(at["sigma"] for at in seen), images, change))
    return tuple(rungs)


def _ways(subject: _Subject, steps: int) -> tuple[paths.Path, ...]:
    model, noise = subject.model, subject.noise(0, _WAYS)
    if model.kind == "denoiser":
        return tuple(paths.solver_path(model, noise[i], steps, subject.label(i)) for i in range(_WAYS))
    return tuple(paths.restart_path(model, steps, subject.seed, _LATER + i, subject.label(i)) for i in range(_WAYS))


def _interpolation(subject: _Subject, rows: int, columns: int) -> Interpolation:
    a, b = subject.noise(1, rows), subject.noise(2, rows)
    between = torch.stack([slerp(a, b, i / (columns - 1)) for i in range(columns)], 1)
    labels = subject.labels(rows)
    images = subject.generate(between.flatten(0, 1), None if labels is None else labels.repeat_interleave(columns))
    images = images.unflatten(0, (rows, columns))
    jumps = (images[:, 1:] - images[:, :-1]).double().square().mean((2, 3, 4)).sqrt()
    return Interpolation(images, None if labels is None else tuple(labels.tolist()), jumps)


def _sensitivity(subject: _Subject, noises: int) -> Sensitivity:
    labels = subject.labels(noises)
    grid = min(_GRID, *subject.model.shape[1:])
    return sensitivity(lambda z: subject.generate(z, labels), subject.noise(0, noises), subject.noise(3, noises), grid)


def guidance_scales(model: ConsistencyModel) -> tuple[float, ...]:
    """The scales that are shown of a model whose guidance can be chosen; 1 is none."""
    known = model.config.guidance
    if known is None or known.form == "fixed":
        return ()
    if known.form == "free":
        return (1.0, 2.0, 4.0)
    low, high = known.scales
    return (low, (low + high) / 2, high) if low < high else (low,)


def _by_class(subject: _Subject, classes: list[int], scales: tuple[float, ...]) -> ByClass:
    labels = torch.tensor(classes)
    noise = subject.noise(0, 6)
    images = subject.generate(noise.repeat(len(classes), 1, 1, 1), labels.repeat_interleave(6))
    rows = [subject.generate(noise[:1].repeat(len(classes), 1, 1, 1), labels, scale) for scale in scales]
    return ByClass(tuple(classes), images.unflatten(0, (len(classes), 6)), scales, torch.stack(rows) if rows else None)


def _noised(subject: _Subject, material: Material) -> tuple[paths.Path, ...]:
    images, labels = material.real(_NOISED, subject.seed)
    real, z = from_uint8(images), subject.noise(0, len(images))
    known = [None if subject.model.labels is None or labels is None else int(labels[i]) for i in range(len(images))]
    return tuple(
        paths.noising(subject.model, y, noise, label, _NOISE_LEVELS) for y, noise, label in zip(real, z, known, strict=True)
    )


def _curves(subject: _Subject, material: Material) -> tuple[Curves, bool]:
    model = subject.model
    images, labels = material.real(CURVE_IMAGES, subject.seed)
    known = None if model.labels is None or labels is None else labels.to(model.device)
    gaussian = fit_gaussian(material.training.images)
    made = curves(
        lambda x, sigma: model(x.to(model.device), sigma, known),
        from_uint8(images),
        paths.levels(paths.lowest(model), model.sigma_max, LEVELS),
        gaussian,
        None if model.kind == "denoiser" else model.sigma_end,
        subject.seed,
    )
    return made, gaussian.full


def _neighbours(subject: _Subject, material: Material, samples: Tensor) -> Neighbours:
    pool = material.training.images
    if len(pool) > _MOST_TRAINING:
        pool = pool[permutation(0, 0, len(pool))[:_MOST_TRAINING]]
    held_out = material.real(_REAL, subject.seed)[0] if material.unseen else None
    return neighbours(to_uint8(samples), pool, held_out, permutation(subject.seed, 0, len(pool))[:_REAL])
