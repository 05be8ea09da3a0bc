"""Trajectories: what a model answers along the ways from noise to image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel
from atonce.sampling.guidance import guided
from atonce.sampling.ode import integrate
from atonce.sampling.restart import restart
from atonce.sampling.times import denoiser_times, restart_times


@dataclass(frozen=True)
class Path:
    """States and answers along a way of one image.

    Attributes:
        title: Which way.
        sigmas: Noise level of each state.
        states: float [k, C, H, W], scaled back to about the range of the data.
        answers: What the model makes of each state, float [k, C, H, W].
        end: Where it leads, or the image it came from; float [C, H, W].
    """

    title: str
    sigmas: tuple[float, ...]
    states: Tensor
    answers: Tensor
    end: Tensor


@dataclass(frozen=True)
class TeacherPath:
    """A teacher's trajectories and what the student makes of their points.

    Attributes:
        path: One trajectory with the teacher's own estimates.
        student: The student's answer at each point of it, float [k, C, H, W].
        sigmas: Noise level of each point.
        distances: Root mean square per pixel between the student's answer and the trajectory's end, a mean over trajectories.
        errors: Its standard error.
        estimates: The same of the teacher's one-call estimate D.
        guidance: Scale the teacher was guided with, if it was.
        steps: Intervals of the solver.
        noises: Number of trajectories.
    """

    path: Path
    student: Tensor
    sigmas: tuple[float, ...]
    distances: tuple[float, ...]
    errors: tuple[float, ...]
    estimates: tuple[float, ...]
    guidance: float | None
    steps: int
    noises: int


def scaled(x: Tensor, sigma: float, sigma_data: float) -> Tensor:
    """A noisy state in the range of the data: x sigma_data / sqrt(sigma^2 + sigma_data^2)."""
    return x * (sigma_data / math.hypot(sigma, sigma_data))


def levels(low: float, high: float, count: int) -> list[float]:
    """Noise levels in equal steps of ln(sigma), ascending, with both ends exact."""
    inner = [math.exp(math.log(low) + (math.log(high) - math.log(low)) * i / (count - 1)) for i in range(1, count - 1)]
    return [low, *inner, high]


def lowest(model: ConsistencyModel) -> float:
    """The smallest noise level at which the model can be asked something that it was trained for."""
    return max(model.sigma_min, model.sigma_end)


def noising(model: ConsistencyModel, image: Tensor, z: Tensor, label: int | None, count: int = 10) -> Path:
    """A real image under ever more of one noise, and the answers.

    Args:
        model: The model.
        image: [C, H, W] in [-1, 1].
        z: Unit noise [C, H, W].
        label: Its class.
        count: Number of noise levels.

    Returns:
        The path, from the lowest level to the highest; its ``end`` is the image.
    """
    sigmas = levels(lowest(model), model.sigma_max, count)
    s = torch.tensor(sigmas, device=model.device)
    y, noise = image.to(model.device), z.to(model.device)
    x = y + s.reshape(-1, 1, 1, 1) * noise
    with torch.no_grad():
        answers = model(x, s, None if label is None else torch.full((count,), label)).cpu()
    states = torch.stack([scaled(row, sigma, model.sigma_data) for row, sigma in zip(x.cpu(), sigmas, strict=True)])
    return Path("a real image under more and more of one noise", tuple(sigmas), states, answers, image.cpu())


def solver_order(model: ConsistencyModel) -> int:
    """1 where a denoiser is to be integrated with Euler's steps, else 2 (Heun)."""
    return 1 if model.config.sampler == "euler" else 2


def ode_trajectories(
    model: ConsistencyModel, z: Tensor, times: Sequence[float], label: Tensor | None, guidance: float | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """States and estimates of a denoiser's trajectories, as its sampler makes them.

    Args:
        model: The denoiser.
        z: Unit noise [n, C, H, W].
        times: Noise levels, descending, the last may be 0.
        label: Classes int64 [n].
        guidance: Scale w of D_u + w (D_c - D_u), for a denoiser that was trained without labels too.

    Returns:
        The state at each of the times, float64 [n, C, H, W] each, and D at each but the last.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if guidance is None or label is None:
            return model(x.float(), sigma, label).double()
        level = torch.full((len(x),), sigma, device=x.device)
        return guided(lambda x, s, c: model(x, s, c), x.float(), level, label.to(x.device), guidance).double()

    estimates: list[Tensor] = []
    states = [z.to(model.device).double() * times[0]]
    with torch.no_grad():
        for interval in zip(times, times[1:], strict=False):
            x, _ = integrate(denoise, states[-1], interval, solver_order(model), lambda at: estimates.append(at["x0"]))  # type: ignore[arg-type]
            states.append(x)
    return states, estimates


def sampler_times(model: ConsistencyModel, steps: int) -> list[float]:
    """The noise levels at which the model's sampler starts its ``steps`` intervals; for a denoiser with the closing 0."""
    close = [0.0] if model.kind == "denoiser" else []
    if steps in model.config.time_points:
        return [*model.config.time_points[steps], *close]
    if model.kind == "denoiser":
        return denoiser_times(steps, model.sigma_min, model.sigma_max)
    return restart_times(steps, model.sigma_max, model.sigma_data)


def solver_path(model: ConsistencyModel, z: Tensor, steps: int, label: int | None, shown: int = 10) -> Path:
    """A denoiser's way from noise to image, with its estimate at each step.

    Args:
        model: The denoiser.
        z: Unit noise [C, H, W].
        steps: Intervals.
        label: The class.
        shown: States that are kept at most, evenly chosen.

    Returns:
        The path, from noise to image.
    """
    times = sampler_times(model, steps)
    states, estimates = ode_trajectories(model, z[None], times, _label(model, label, 1))
    chosen = evenly(len(estimates), shown)
    solver = "Euler" if solver_order(model) == 1 else "Heun"
    return Path(
        f"the way of {solver}'s solver in {steps} steps",
        tuple(times[i] for i in chosen),
        torch.cat([scaled(states[i], times[i], model.sigma_data) for i in chosen]).float().cpu(),
        torch.cat([estimates[i] for i in chosen]).float().cpu(),
        states[-1][0].float().cpu(),
    )


def restart_path(model: ConsistencyModel, steps: int, seed: int, index: int, label: int | None) -> Path:
    """A consistency model's way in several steps: answer, add noise, answer again.

    Args:
        model: The model.
        steps: Intervals.
        seed: Of the noise.
        index: Index of the sample, as in :meth:`atonce.model.ConsistencyModel.sample`.
        label: The class.

    Returns:
        The path, from noise to image.
    """
    times, known = sampler_times(model, steps), _label(model, label, 1)
    states: list[Tensor] = []
    answers: list[Tensor] = []

    def f(x: Tensor, sigma: float) -> Tensor:
        states.append(scaled(x, sigma, model.sigma_data).cpu())
        answers.append(model(x, sigma, known))
        return answers[-1]

    def noise(step: int) -> Tensor:
        return normal(seed, torch.tensor([index]), model.shape, Stream.SAMPLE, step).to(model.device)

    with torch.no_grad():
        end = restart(f, noise, times, model.sigma_end, model.clip)
    title = f"{steps} steps: answer, add fresh noise, answer again"
    return Path(title, tuple(times), torch.cat(states), torch.cat(answers).cpu(), end[0].cpu())


def teacher_path(
    model: ConsistencyModel, teacher: ConsistencyModel, noise: Tensor, labels: Tensor | None, steps: int, shown: int = 10
) -> TeacherPath:
    """The student's answers along the teacher's trajectories: an exact consistency model gives the end everywhere.

    Args:
        model: The student.
        teacher: A denoiser that :func:`check_teacher` lets pass.
        noise: Unit noise [n, C, H, W], n at least 2.
        labels: Classes int64 [n].
        steps: Intervals of the solver.
        shown: Points of the first trajectory that are kept as pictures.

    Returns:
        The trajectories.
    """
    guidance = teacher_guidance(model, teacher)
    low, high = max(lowest(model), teacher.sigma_min), min(model.sigma_max, teacher.sigma_max)
    times = denoiser_times(steps, low, high)
    theirs = None if teacher.labels is None else labels
    states, estimates = ode_trajectories(teacher, noise, times, theirs, guidance)
    ours = None if model.labels is None else labels
    with torch.no_grad():
        student = [model(x.float().to(model.device), s, ours).cpu() for x, s in zip(states, times[:-1], strict=False)]
    end = states[-1].float().cpu()
    each = [_rms(x, end) for x in student]
    chosen = evenly(len(student), shown)
    path = Path(
        f"the teacher's trajectory in {steps} steps of {'Euler' if solver_order(teacher) == 1 else 'Heun'}",
        tuple(times[i] for i in chosen),
        torch.stack([scaled(states[i][0], times[i], model.sigma_data) for i in chosen]).float().cpu(),
        torch.stack([estimates[i][0] for i in chosen]).float().cpu(),
        end[0],
    )
    return TeacherPath(
        path,
        torch.stack([student[i][0] for i in chosen]),
        tuple(times[:-1]),
        tuple(float(e.mean()) for e in each),
        tuple(float(e.std() / len(e) ** 0.5) for e in each),
        tuple(float(_rms(d.float().cpu(), end).mean()) for d in estimates),
        guidance,
        steps,
        len(noise),
    )


def teacher_guidance(model: ConsistencyModel, teacher: ConsistencyModel) -> float | None:
    """The scale that is fixed in the model's weights, where its teacher can be guided with it."""
    known, theirs = model.config.guidance, teacher.config.guidance
    recipe = teacher.card.get("recipe")
    dropped = recipe.get("label_dropout") if isinstance(recipe, dict) else None
    can = teacher.labels is not None and (bool(dropped) or (theirs is not None and theirs.form == "free"))
    return known.scales[0] if known is not None and known.form == "fixed" and can else None


def check_teacher(model: ConsistencyModel, teacher: ConsistencyModel) -> None:
    """Refuse a teacher whose trajectories the model cannot be compared with.

    Args:
        model: The model that is inspected.
        teacher: The teacher.

    Raises:
        InputError: It does not fit; the message says in what.
    """
    if model.kind == "denoiser":
        raise InputError("a teacher is for a consistency model, this is a denoiser itself: leave --teacher out")
    if teacher.kind != "denoiser":
        raise InputError(f"the teacher is a {teacher.kind} model: give a denoiser (trained with the diffusion recipe)")
    if teacher.shape != model.shape:
        ours, theirs = ("x".join(map(str, m.shape)) for m in (model, teacher))
        raise InputError(f"the teacher makes images of {theirs}, the model of {ours}: give the teacher it was distilled from")
    if teacher.labels is not None and teacher.labels != model.labels:
        ours = "none" if model.labels is None else f"{len(model.labels)}: {', '.join(model.labels[:4])}"
        theirs = f"{len(teacher.labels)}: {', '.join(teacher.labels[:4])}"
        raise InputError(f"the teacher's classes are {theirs}, the model's {ours}: give a teacher with the same")


def evenly(n: int, most: int) -> list[int]:
    """At most ``most`` positions of 0..n-1, evenly spread, with the first and the last."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def _rms(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of each image, float64 [n]."""
    return (a.double() - b.double()).square().flatten(1).mean(1).sqrt()


def _label(model: ConsistencyModel, label: int | None, n: int) -> Tensor | None:
    return None if label is None else torch.full((n,), label, device=model.device)
