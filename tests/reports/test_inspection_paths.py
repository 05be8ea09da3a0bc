"""Trajectories: they are those of the samplers, and on a world that is known they are the exact ones."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel, Guidance
from atonce.reports import inspection_paths as paths
from atonce.sampling.guidance import guided
from atonce.sampling.times import denoiser_times


def noise(n: int, model: ConsistencyModel, seed: int = 3) -> torch.Tensor:
    return normal(seed, torch.arange(n), model.shape, Stream.SAMPLE)


def test_the_path_of_restarts_is_that_of_the_sampler(inspected: ModuleType) -> None:
    model = inspected.untrained(labels=3)
    seen: list[dict[str, Any]] = []
    sample = model.sample(1, 4, 3, first=5, labels=2, callback=seen.append)
    path = paths.restart_path(model, 4, 3, 5, 2)
    torch.testing.assert_close(path.end, sample[0])
    assert list(path.sigmas) == [at["sigma"] for at in seen]
    for answer, at in zip(path.answers, seen, strict=True):
        torch.testing.assert_close(answer.clamp(-1, 1), at["x0"][0])


@pytest.mark.parametrize("sampler", ["auto", "euler"])
def test_the_path_of_the_solver_is_that_of_the_sampler(inspected: ModuleType, sampler: str) -> None:
    model = inspected.untrained("denoiser", labels=3, sampler=sampler)
    seen: list[dict[str, Any]] = []
    z = noise(1, model)
    sample = model.sample(1, 6, noise=z, labels=2, callback=seen.append)
    path = paths.solver_path(model, z[0], 6, 2, shown=6)
    torch.testing.assert_close(path.end.clamp(-1, 1), sample[0])
    for answer, at in zip(path.answers, seen, strict=True):
        torch.testing.assert_close(answer, at["x0"][0].float())
    assert ("Euler" in path.title) == (sampler == "euler")


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["consistency", "denoiser"])
def test_the_time_points_are_those_of_the_sampler(inspected: ModuleType, kind: str, steps: int) -> None:
    model = inspected.untrained(kind, time_points={3: (80.0, 4.0, 0.3)})
    seen: list[dict[str, Any]] = []
    model.sample(1, steps, callback=seen.append)
    times = paths.sampler_times(model, steps)
    assert [t for t in times if t > 0] == [at["sigma"] for at in seen]
    assert (times[-1] == 0) == (kind == "denoiser")


def test_a_real_image_under_noise_and_the_exact_answers(inspected: ModuleType) -> None:
    model = inspected.known("consistency")
    y, z = torch.full(model.shape, 0.3), noise(1, model)[0]
    path = paths.noising(model, y, z, None, 5)
    assert path.sigmas[0] == model.sigma_min
    assert path.sigmas[-1] == model.sigma_max
    assert all(high / low == pytest.approx(40000**0.25) for low, high in itertools.pairwise(path.sigmas))
    for sigma, state, answer in zip(path.sigmas, path.states, path.answers, strict=True):
        shrunk = (y + sigma * z) * inspected.S / (inspected.S**2 + sigma**2) ** 0.5
        torch.testing.assert_close(state, shrunk)
        torch.testing.assert_close(answer, shrunk, rtol=1e-4, atol=1e-5)


def test_an_exact_model_gives_the_end_of_its_teachers_trajectory_everywhere(inspected: ModuleType) -> None:
    model, teacher = inspected.known("consistency"), inspected.known("denoiser")
    z = noise(4, model)
    found = paths.teacher_path(model, teacher, z, None, 200)
    # What is left is the error of the solver, of second order.
    assert max(found.distances) < 2e-4
    exact = z[0] * inspected.S * 80 / (inspected.S**2 + 80**2) ** 0.5
    torch.testing.assert_close(found.path.end, exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.student, exact.expand_as(found.student), rtol=0, atol=1e-3)
    # The teacher in one call gives the mean, here almost 0.
    mean = z * inspected.S**2 * 80 / (inspected.S**2 + 80**2)
    exact_ends = z * inspected.S * 80 / (inspected.S**2 + 80**2) ** 0.5
    distances = (mean - exact_ends).square().flatten(1).mean(1).sqrt()
    assert found.estimates[0] == pytest.approx(float(distances.mean()), rel=1e-3)
    assert found.noises == 4
    assert len(found.sigmas) == len(found.distances) == 200


def test_another_model_is_away_from_the_trajectory(inspected: ModuleType) -> None:
    model, teacher = inspected.known("consistency"), inspected.known("denoiser")
    with torch.no_grad():
        model.network.a.fill_(0.3)
    found = paths.teacher_path(model, teacher, noise(4, model), None, 18)
    assert found.distances[0] > 0.1


def test_a_teacher_is_guided_with_the_scale_that_is_in_the_models_weights(inspected: ModuleType) -> None:
    model = inspected.untrained(labels=3, guidance=Guidance("fixed", (2.5,)))
    free = inspected.untrained("denoiser", labels=3, guidance=Guidance("free"))
    unguided = inspected.untrained("denoiser", labels=3)
    assert paths.teacher_guidance(model, free) == 2.5
    assert paths.teacher_guidance(model, unguided) is None
    unguided.card["recipe"] = {"label_dropout": 0.1}
    assert paths.teacher_guidance(model, unguided) == 2.5
    assert paths.teacher_guidance(inspected.untrained(labels=3), free) is None

    z, labels = noise(2, model), torch.tensor([0, 2])
    times = denoiser_times(3, 0.002, 80.0)
    states, estimates = paths.ode_trajectories(free, z, times, labels, 2.5)
    expected = guided(lambda x, s, c: free(x, s, c), 80 * z, torch.full((2,), 80.0), labels, 2.5)
    torch.testing.assert_close(estimates[0].float(), expected)
    clipped = states[-1].float().clamp(-1, 1)
    torch.testing.assert_close(clipped, free.sample(2, 3, noise=z, labels=labels, guidance=2.5))


def test_teachers_that_do_not_fit_are_refused(inspected: ModuleType) -> None:
    model, teacher = inspected.untrained(labels=3), inspected.untrained("denoiser", labels=3)
    paths.check_teacher(model, teacher)
    paths.check_teacher(model, inspected.untrained("denoiser"))
    with pytest.raises(InputError, match="teacher is a consistency model: give a denoiser"):
        paths.check_teacher(model, model)
    with pytest.raises(InputError, match="this is a denoiser itself: leave --teacher out"):
        paths.check_teacher(teacher, teacher)
    with pytest.raises(InputError, match="teacher makes images of 3x8x8, the model of 1x8x8"):
        paths.check_teacher(model, inspected.untrained("denoiser", channels=3))
    with pytest.raises(InputError, match=r"teacher's classes are 4: 0, 1, 2, 3, the model's 3: 0, 1, 2"):
        paths.check_teacher(model, inspected.untrained("denoiser", labels=4))
    with pytest.raises(InputError, match="the model's none"):
        paths.check_teacher(inspected.untrained(), teacher)


@pytest.mark.parametrize(("n", "most"), [(1, 10), (10, 10), (11, 10), (18, 10), (1000, 20)])
def test_positions_are_evenly_spread_with_both_ends(n: int, most: int) -> None:
    chosen = paths.evenly(n, most)
    assert len(chosen) == min(n, most)
    assert (chosen[0], chosen[-1]) == (0, n - 1)
    steps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not steps or max(steps) - min(steps) <= 1
