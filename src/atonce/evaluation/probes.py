"""Metrics that look at a model itself: it is called at noise levels of their choice, not only asked for samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.core.records import Metric, Source
from atonce.core.streams import Stream, normal, permutation
from atonce.data.dataset import ImageData
from atonce.data.limits import check_memory, one_line
from atonce.evaluation.gather import CHUNK
from atonce.evaluation.rows import every_row
from atonce.evaluation.samples import Samples, class_names, model_classes, same_classes, step_count
from atonce.evaluation.selfconsistency import gap_metrics, gap_norms
from atonce.evaluation.teacher import (
    STEPS,
    Ends,
    Function,
    check_answer,
    solver_error,
    solver_grid,
    teacher_metrics,
    trajectory_ends,
)
from atonce.model import ConsistencyModel
from atonce.model_config import Guidance, guidance_scale
from atonce.model_files import model_identity, weights_digest
from atonce.noise.karras import karras_grid

POINTS = 18
"""Noise levels of the grid on which the self-consistency gap is measured."""
_FEW = 16  # images by which the solver's error is estimated

Step = Callable[[int, int], None]
Result = tuple[dict[str, Metric], list[str]]


@dataclasses.dataclass(frozen=True)
class Probes:
    """A model, and what it is held against.

    The model and its teacher see the same images together, ``gather.CHUNK`` of them, whatever the batch and however many
    processes share them: in float32 the size of a batch changes the last digits.

    Attributes:
        source: The samples, for the model and how it is asked.
        real: The data.
        count: Images that are looked at.
        teacher: A denoiser: a model, or a function D(x, sigma); or None.
        teacher_steps: Intervals of the solver.
    """

    source: Samples
    real: ImageData
    count: int
    teacher: Any = None
    teacher_steps: int = STEPS

    @property
    def teacher_source(self) -> Source | None:
        """The teacher, for a record."""
        if self.teacher is None:
            return None
        if isinstance(self.teacher, ConsistencyModel):
            return Source(model_identity(self.teacher), weights_digest(self.teacher))
        return Source(getattr(self.teacher, "__name__", type(self.teacher).__name__), "a function")

    def most_steps(self) -> int:
        """The number of steps up to which the gain is measured: those asked for, at least 2."""
        asked = self.source.sampling
        assert asked is not None  # there is a model
        return max(2, asked.steps) if asked.sigmas is None else step_count(asked.sigmas, self.source.model)

    def consistency_gap(self, seed: int, sharded: bool, step: Step) -> Result:
        """The gap of :mod:`~atonce.evaluation.selfconsistency` on real images, over a Karras grid of 18 noise levels."""
        model, n = self._model(), min(self.count, len(self.real))
        rows = permutation(seed, 0, len(self.real))[:n]
        images = from_uint8(self.real.images[rows])
        classes = self._classes_of(rows)
        grid = karras_grid(POINTS, model.sigma_min, model.sigma_max).tolist()

        def norms(first: int, count: int) -> Tensor:
            f = self._function(model, None if classes is None else classes[first : first + count], model.device)
            found = gap_norms(f, images[first : first + count].to(model.device), grid, seed=seed, first=first)
            step(first + count, n)
            return found

        found = every_row(n, POINTS - 1, norms, batch=CHUNK, sharded=sharded)
        metrics, note = gap_metrics(found, images[0].numel(), grid, seed=seed)
        return metrics, [note]

    def teacher_distance(self, seed: int, sharded: bool, step: Step) -> Result:
        """The distance of :mod:`~atonce.evaluation.teacher`, from the noise of the first samples."""
        model, n, values = self._model(), self.count, self.real.images[0].numel()
        asked = self.source.sampling
        assert asked is not None
        lowest = getattr(self.teacher, "sigma_min", 0.002)
        grid = solver_grid(model.sigma_max, model.sigma_end, lowest, self.teacher_steps)

        def noise(first: int, count: int) -> Tensor:
            index = torch.arange(first, first + count)
            return normal(asked.seed, index, self.real.shape, Stream.SAMPLE).to(model.device)

        def both(first: int, count: int) -> Tensor:
            labels = None if self.source.asked is None else self.source.asked[first : first + count]
            f, teacher = self._function(model, labels, model.device), self._teacher_function(labels, model.device)
            ends = trajectory_ends(f, teacher, noise(first, count), grid)
            step(first + count, n)
            return torch.cat([ends.answers.flatten(1), ends.solutions.flatten(1)], 1)

        answers, solutions = (
            every_row(n, 2 * values, both, batch=CHUNK, sharded=sharded).reshape(n, 2, *self.real.shape).unbind(1)
        )
        few = min(n, _FEW)
        labels = None if self.source.asked is None else self.source.asked[:few]
        error = solver_error(self._teacher_function(labels, model.device), noise(0, few), grid)
        note = (
            f"the solution of the teacher's ODE has an error of about {error:.2g} per pixel ({self.teacher_steps} Heun steps)"
        )
        return teacher_metrics(Ends(answers, solutions), steps=self.teacher_steps, seed=seed), [note]

    def _model(self) -> Any:
        """The model, with the set of weights that was asked for."""
        model, asked = self.source.model, self.source.sampling
        if asked is None or asked.ema is None or not isinstance(model, ConsistencyModel):
            return model
        return ConsistencyModel(model.config, model._network(asked.ema))

    def _function(self, model: Any, labels: Tensor | None, device: torch.device) -> Function:
        options: dict[str, Any] = {}
        asked = self.source.sampling
        if asked is not None and asked.guidance is not None:
            options["guidance"] = asked.guidance
        if labels is None:
            return lambda x, sigma: model(x, sigma, **options)
        return lambda x, sigma: model(x, sigma, labels.to(device), **options)

    def _teacher_function(self, labels: Tensor | None, device: torch.device) -> Function:
        teacher = self.teacher
        if not isinstance(teacher, ConsistencyModel):
            return teacher
        scale, teacher = teacher_scale(self.source, teacher), _guidable(teacher)
        there = None if labels is None or teacher.labels is None else labels.to(teacher.device)
        return lambda x, sigma: teacher(x.to(teacher.device), sigma, there, guidance=scale).to(device)

    def _classes_of(self, rows: Tensor) -> Tensor | None:
        """The classes of real images as the model counts them."""
        names = model_classes(self.source.model)
        if names is None or self.real.labels is None:
            return None
        return same_classes(self.real.labels[rows], class_names(self.real), names)


def open_probes(
    wanted: Sequence[str], source: Samples, real: ImageData, count: int, teacher: Any, teacher_steps: int = STEPS
) -> Probes | None:
    """What the metrics that look at a model need, checked.

    Args:
        wanted: Names of metrics.
        source: The samples.
        real: The data.
        count: Images to look at, at most as many as there are samples.
        teacher: A denoiser for ``teacher_distance``.
        teacher_steps: Intervals of its solver.

    Returns:
        The probes; None where no metric needs them.

    Raises:
        InputError: The model, the teacher or a number does not fit; said before any work is done.
    """
    if not any(name in wanted for name in ("consistency_gap", "teacher_distance", "step_gain")):
        return None
    if whole(count, "probes") < 2:
        raise InputError(f"probes must be at least 2 images, got {count}")
    model = source.model
    for name in ("consistency_gap", "teacher_distance"):
        if name not in wanted:
            continue
        if getattr(model, "kind", "consistency") == "denoiser":
            raise InputError(f"metric {name} is for consistency models, this one is a denoiser: leave it out")
        if not callable(model) or any(not hasattr(model, each) for each in ("sigma_min", "sigma_max", "sigma_end", "device")):
            raise InputError(f"metric {name} calls model(x, sigma) up to model.sigma_max: {type(model).__name__} cannot")
    found = Probes(source, real, min(count, source.count), teacher, teacher_steps)
    if "consistency_gap" in wanted and model_classes(model) is not None:
        if found._classes_of(torch.arange(1)) is None:
            raise InputError(f"metric consistency_gap needs images of the model's classes, {real.name} has no such labels")
    if "step_gain" in wanted and found.most_steps() < 2:
        raise InputError("metric step_gain needs at least 2 steps: give more than one of sigmas")
    if "teacher_distance" in wanted:
        check_memory(
            6 * 8 * found.count * real.images[0].numel(),  # answers, solutions, and both about their means
            f"answers and solutions of {found.count:,} images",
            "give fewer probes",
        )
        _check_teacher(found)
    return found


def teacher_scale(source: Samples, teacher: ConsistencyModel) -> float | None:
    """The scale at which a teacher is guided: that of the samples, or the one that was distilled into their model."""
    fixed = getattr(getattr(source.model, "config", None), "guidance", None)
    scale = source.sampling.guidance if source.sampling is not None else None
    if scale is None and fixed is not None and len(fixed.scales) == 1:
        scale = fixed.scales[0]
    return None if scale == 1 and teacher.config.guidance is None else scale


def _check_teacher(probes: Probes) -> None:
    teacher, source = probes.teacher, probes.source
    if teacher is None or isinstance(teacher, str):
        raise InputError("metric teacher_distance needs the teacher, an opened denoiser: give teacher=atonce.load(...)")
    solver_grid(1.0, 0.0, 0.002, probes.teacher_steps)
    if not isinstance(teacher, ConsistencyModel):
        if not callable(teacher):
            raise InputError(f"teacher must be a denoiser or a function D(x, sigma), got {type(teacher).__name__}")
        _try_function(probes)
        return
    if teacher.kind != "denoiser" or teacher.shape != probes.real.shape:
        shape = "x".join(map(str, teacher.shape))
        raise InputError(
            f"the teacher is a {teacher.kind} model for {shape} images: "
            f"give a denoiser for {'x'.join(map(str, probes.real.shape))}"
        )
    if teacher.sigma_max < source.model.sigma_max * (1 - 1e-6):
        raise InputError(f"the teacher knows noise up to {teacher.sigma_max:g}, the model starts at {source.model.sigma_max:g}")
    if teacher.labels is not None and teacher.labels != source.model.labels:
        raise InputError("the teacher has other classes than the model: give the one that was distilled")
    scale, known = teacher_scale(source, teacher), _guidable(teacher).config.guidance
    if scale is not None and known is None:
        raise InputError(
            f"the samples are guided at scale {scale:g}, the teacher knows no images without a class: give another"
        )
    guidance_scale(known, scale, None if source.asked is None else source.asked[:1])


def _try_function(probes: Probes) -> None:
    """Call a function that is to be the teacher once, on the noise of the first sample."""
    source, asked = probes.source, probes.source.sampling
    assert asked is not None  # there is a model
    x = normal(asked.seed, torch.zeros(1, dtype=torch.int64), probes.real.shape, Stream.SAMPLE).to(source.model.device)
    sigma = float(source.model.sigma_max)
    try:
        with torch.no_grad():
            found = probes.teacher(sigma * x, sigma)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = f"x {list(x.shape)} and sigma {sigma:g}"
        raise InputError(f"the teacher, a function D(x, sigma), cannot be called with {given}: {one_line(error)}") from error
    check_answer(found, x, "teacher")


def _guidable(teacher: ConsistencyModel) -> ConsistencyModel:
    """The teacher, which may be guided where its recipe dropped labels, also if its configuration does not say so."""
    recipe = teacher.card.get("recipe")
    dropped = recipe.get("label_dropout") if isinstance(recipe, dict) else None
    if teacher.config.guidance is not None or not dropped or teacher.labels is None:
        return teacher
    return ConsistencyModel(dataclasses.replace(teacher.config, guidance=Guidance("free")), teacher.network, card=teacher.card)
