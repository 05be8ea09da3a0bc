"""Editing where the right answer is known: normal data, for which what is unknown given what is known is normal too.

With the exact consistency function every step of the algorithm is affine, so its results are normal with a mean and a
covariance that follow a closed recursion (:func:`recursion`). That is compared with the algorithm, and then with the exact
conditional distribution. The difference is the bias of the algorithm itself, with a perfect model and no sampling error.

The bias of the default noise levels (:func:`test_the_bias_of_the_default_levels` asserts these numbers): the root mean squared
error of the mean and the distance of the two distributions (Wasserstein 2), both in units of the exact standard deviation, and
the ratio of the standard deviations:

    task (standard deviation .5, correlation exp(-distance / 2))   steps   mean    W2      spread
    right half of 8 x 8 from the left half                         1       .456    .489    1.100
                                                                   4       .352    .372    1.070
                                                                   16      .200    .206    1.030
                                                                   64      .101    .103    1.012
    8 x 8 from means of 2 x 2                                      1       .392    .415    1.075
                                                                   4       .213    .221    1.034
                                                                   16      .070    .071    1.008
                                                                   64      .025    .026    1.003
    8 x 8 from means of 4 x 4                                      1       .264    .283    1.035
                                                                   4       .142    .149    1.015
                                                                   16      .037    .038    1.003
                                                                   64      .010    .010    1.001
    colours of 4 x 4 from grey (channels correlated by .9)         1       1.659   1.982   1.953
                                                                   4       .726    .866    1.391
                                                                   16      .124    .150    1.062
                                                                   64      .048    .067    1.028

So one step knows too little of what is known, several steps approach it, and the results are always spread too wide, never too
narrow. More steps help, since a step at a small sigma is a step of Langevin dynamics of length sigma^2; at a constant sigma the
bias that stays falls with sigma^2 (:func:`test_at_a_constant_level_the_bias_that_stays_falls_with_its_square`).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.editing.algorithm import edit
from atonce.editing.operators import Known, averages, grey, nothing, pixels
from atonce.editing.times import edit_times
from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian

END = 0.002
# What the noise levels need to know of a model.
LEVELS: Any = SimpleNamespace(sigma_max=80.0, sigma_data=0.5, sigma_end=END)


def covariance(channels: int, height: int, width: int, between: float = 0.9, std: float = 0.5) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).double()
    space = torch.exp(-torch.cdist(places, places) / 2)
    colour = torch.full((channels, channels), between, dtype=torch.float64).fill_diagonal_(1.0)
    return std**2 * torch.kron(colour, space)


def half(height: int, width: int) -> Known:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, width // 2 :] = True
    return pixels(mask)


TASKS: dict[str, tuple[tuple[int, int, int], Known]] = {
    "half": ((1, 8, 8), half(8, 8)),
    "means of 2": ((1, 8, 8), averages(2)),
    "means of 4": ((1, 8, 8), averages(4)),
    "grey": ((3, 4, 4), grey()),
}


def matrix(known: Known, shape: tuple[int, int, int]) -> Tensor:
    d = math.prod(shape)
    return known.project(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(d, d).T


def root(s: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(s)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def slope_of_f(s: Tensor, t: float) -> Tensor:
    """The exact consistency function is mean + this times (x - mean)."""
    values, vectors = torch.linalg.eigh(s)
    return (vectors * torch.sqrt((values + END**2) / (values + t**2))) @ vectors.T


def recursion(s: Tensor, p: Tensor, sigmas: list[float]) -> tuple[Tensor, Tensor]:
    """Results given y are N(m + B (y - m), C): B and C, step by step. The mean m plays no part but to be subtracted.

    x <- Q M (x + l z) + P y, with Q = 1 - P and l the noise that is added, so B <- Q M B + P and C <- Q M (C + l^2) M Q. The
    algorithm begins at P y = P m + P (y - m): for m = 0 exactly as here, else the start differs by Q m (see the test).
    """
    one = torch.eye(len(s), dtype=torch.float64)
    q, b, c = one - p, p.clone(), torch.zeros_like(s)
    for i, t in enumerate(sigmas):
        m = slope_of_f(s, t)
        added = t**2 if i == 0 else t**2 - END**2
        b, c = q @ m @ b + p, q @ m @ (c + added * one) @ m @ q
    return b, c


def exact(s: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Given P y, data are N(m + A (y - m), C): A and C."""
    a = s @ p @ torch.linalg.pinv(p @ s @ p, rtol=1e-10, hermitian=True)
    return a, s - a @ p @ s


def bias(s: Tensor, p: Tensor, b: Tensor, c: Tensor) -> tuple[float, float, float]:
    """Error of the mean over data, Wasserstein-2 distance over data, ratio of spreads; the first two in exact spreads."""
    a, right = exact(s, p)
    spread = right.trace()
    mean = ((b - a) @ s @ (b - a).T).trace()
    middle = root(right)
    distance = mean + (c + right - 2 * root(middle @ c @ middle)).trace()
    return tuple(float(v.clamp(min=0).sqrt()) for v in (mean / spread, distance / spread, c.trace() / spread))  # type: ignore[return-value]


def bias_of(task: str, sigmas: list[float]) -> tuple[float, float, float]:
    shape, known = TASKS[task]
    s, p = covariance(*shape), matrix(known, shape)
    return bias(s, p, *recursion(s, p, sigmas))


# ---- the algorithm is the recursion


SMALL = {
    "inpainting, 1 x 2 x 2": ((1, 2, 2), half(2, 2)),
    "means, 1 x 4 x 4": ((1, 4, 4), averages(2)),
    "grey, 3 x 1 x 2": ((3, 1, 2), grey()),
    "grey of the unmasked, 3 x 2 x 2": ((3, 2, 2), half(2, 2) & grey()),
    "grey and colours of the unmasked, 3 x 2 x 2": ((3, 2, 2), half(2, 2) | grey()),
    "nothing, 1 x 2 x 2": ((1, 2, 2), nothing()),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_every_step_is_the_recursions(name: str, steps: int) -> None:
    """Results are affine in y and in each step's noise, so their answers to unit vectors are the mean and the covariance."""
    shape, known = SMALL[name]
    d = math.prod(shape)
    s, p = covariance(*shape), matrix(known, shape)
    centre = torch.linspace(-0.3, 0.4, d, dtype=torch.float64)
    world = Gaussian.from_covariance(centre, s)
    sigmas = edit_times(LEVELS, steps, None)
    zero = torch.zeros(1, d, dtype=torch.float64)

    def run(y: Tensor, noise: dict[int, Tensor]) -> Tensor:
        out, info = edit(
            lambda x, t: world.consistency(x.flatten(1), t, END).reshape(x.shape),
            known,
            y.reshape(-1, *shape),
            sigmas,
            lambda k: noise.get(k, zero.expand(len(y), d)).reshape(-1, *shape),
            END,
            clip=None,
        )
        assert (info.calls, info.bare) == (steps, 0.0)
        assert info.clamped < 1e-14
        return out.flatten(1)

    b, c = recursion(s, p, sigmas)
    unit = torch.eye(d, dtype=torch.float64)
    origin = run(zero, {})
    torch.testing.assert_close((run(unit, {}) - origin).T, b, rtol=0, atol=1e-12)
    responses = [(run(zero.expand(d, d), {k: unit}) - origin).T for k in range(steps)]
    torch.testing.assert_close(sum(r @ r.T for r in responses), c, rtol=0, atol=1e-11)
    # The mean of the world is where it should be: at y = m only the start, P m instead of m, is another.
    carried = torch.eye(d, dtype=torch.float64)
    for t in sigmas:
        carried = (unit - p) @ slope_of_f(s, t) @ carried
    torch.testing.assert_close(run(centre[None], {})[0] - centre, -carried @ (unit - p) @ centre, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["inpainting, 1 x 2 x 2", "grey, 3 x 1 x 2"])
def test_samples_have_the_recursions_mean_and_covariance(name: str) -> None:
    """With the noise of the streams, 40,000 images of one y: within five standard errors.

    The test could tell them from the exact conditional distribution, which is ten to twenty away.
    """
    shape, known = SMALL[name]
    d, n = math.prod(shape), 40_000
    s, p = covariance(*shape), matrix(known, shape)
    world = Gaussian.from_covariance(torch.zeros(d, dtype=torch.float64), s)
    y = 2 * world.sample(1, 3)
    sigmas = edit_times(LEVELS, 5, None)
    index = torch.arange(n)
    out, _ = edit(
        lambda x, t: world.consistency(x.flatten(1), t, END).reshape(x.shape),
        known,
        y.reshape(1, *shape).expand(n, *shape),
        sigmas,
        lambda k: normal(0, index, shape, Stream.EDIT, k).double(),
        END,
        clip=None,
    )
    b, c = recursion(s, p, sigmas)
    x = out.flatten(1)
    error = (c.diagonal() / n).sqrt()
    assert bool(((x.mean(0) - b @ y[0]).abs() < 5 * error + 1e-12).all())
    spread = ((c.diagonal()[:, None] * c.diagonal() + c**2) / n).sqrt()
    assert bool(((torch.cov(x.T) - c).abs() < 5 * spread + 1e-12).all())
    a, right = exact(s, p)
    assert bool(((x.mean(0) - a @ y[0]).abs() > 20 * error + 1e-9).any())
    assert bool(((torch.cov(x.T) - right).abs() > 10 * spread + 1e-9).any())


# ---- the bias


@pytest.mark.parametrize(
    ("task", "steps", "numbers"),
    [
        ("half", 1, (0.456, 0.489, 1.100)),
        ("half", 4, (0.352, 0.372, 1.070)),
        ("half", 16, (0.200, 0.206, 1.030)),
        ("half", 64, (0.101, 0.103, 1.012)),
        ("means of 2", 1, (0.392, 0.415, 1.075)),
        ("means of 2", 4, (0.213, 0.221, 1.034)),
        ("means of 2", 16, (0.070, 0.071, 1.008)),
        ("means of 2", 64, (0.025, 0.026, 1.003)),
        ("means of 4", 1, (0.264, 0.283, 1.035)),
        ("means of 4", 4, (0.142, 0.149, 1.015)),
        ("means of 4", 16, (0.037, 0.038, 1.003)),
        ("means of 4", 64, (0.010, 0.010, 1.001)),
        ("grey", 1, (1.659, 1.982, 1.953)),
        ("grey", 4, (0.726, 0.866, 1.391)),
        ("grey", 16, (0.124, 0.150, 1.062)),
        ("grey", 64, (0.048, 0.067, 1.028)),
    ],
)
def test_the_bias_of_the_default_levels(task: str, steps: int, numbers: tuple[float, float, float]) -> None:
    for found, number in zip(bias_of(task, edit_times(LEVELS, steps, None)), numbers, strict=True):
        assert abs(found - number) < 6e-4


@pytest.mark.parametrize("task", TASKS)
def test_more_steps_are_nearer_and_never_too_narrow(task: str) -> None:
    found = [bias_of(task, edit_times(LEVELS, steps, None)) for steps in (1, 2, 4, 8, 16, 32, 64)]
    for before, after in zip(found, found[1:], strict=False):
        assert after[0] < before[0]
        assert after[1] < before[1]
    assert all(spread >= 1 for _, _, spread in found)


@pytest.mark.parametrize("task", TASKS)
def test_the_default_levels_need_fewer_calls_than_the_published_ones(task: str) -> None:
    """16 calls against the 39 of the paper's grid of 40, most of which is spent where nothing is decided."""
    published = [float(t) for t in karras_grid(40).flip(0)[:-1]]
    assert bias_of(task, edit_times(LEVELS, 16, None))[1] < 1.05 * bias_of(task, published)[1]
    assert bias_of(task, edit_times(LEVELS, 40, None))[1] < bias_of(task, published)[1]


@pytest.mark.parametrize("task", TASKS)
def test_at_a_constant_level_the_bias_that_stays_falls_with_its_square(task: str) -> None:
    """The fixed point of the recursion at one sigma: slope 2 of mean and of covariance, the order of Langevin dynamics.

    The exact answer is that for data at noise level END, where f's outputs live.
    """
    shape, known = TASKS[task]
    s, p = covariance(*shape), matrix(known, shape)
    one = torch.eye(len(s), dtype=torch.float64)
    a, right = exact(s + END**2 * one, p)
    levels, means, spreads = [0.04, 0.02, 0.01], [], []
    for t in levels:
        step = (one - p) @ slope_of_f(s, t)
        b = torch.linalg.solve(one - step, p)
        c = added = (t**2 - END**2) * step @ step.T
        power = step
        for _ in range(40):  # the sum of powers, doubled each time
            c = c + power @ c @ power.T
            power = power @ power
        torch.testing.assert_close(step @ c @ step.T + added, c, rtol=0, atol=1e-10)
        means.append(float(((b - a) @ s @ (b - a).T).trace().sqrt()))
        spreads.append(float((c - right).norm()))
    for errors in (means, spreads):
        slope = float(np.polyfit(np.log(levels), np.log(errors), 1)[0])
        assert 1.8 < slope < 2.2, errors


def test_a_step_at_a_small_level_is_a_step_of_langevin_dynamics() -> None:
    """f(x + t z, t) = x + t z + (t^2 - end^2) / 2 grad log p + O(t^3): the next order has slope 4 without the noise."""
    s = covariance(1, 2, 2)
    world = Gaussian.from_covariance(torch.zeros(4, dtype=torch.float64), s)
    x = world.sample(5, 0)
    errors = []
    levels = [0.16, 0.08, 0.04]
    for t in levels:
        drift = 0.5 * (t**2 - END**2) * world.score(x, END)
        errors.append(float((world.consistency(x, t, END) - x - drift).norm()))
    assert 3.8 < float(np.polyfit(np.log(levels), np.log(errors), 1)[0]) < 4.2


def test_one_step_ignores_most_of_what_is_known() -> None:
    """At 80 the known part is drowned in noise, so what is made is a sample that does not heed it."""
    shape, known = TASKS["half"]
    s, p = covariance(*shape), matrix(known, shape)
    b, c = recursion(s, p, [80.0])
    a, right = exact(s, p)
    q = torch.eye(len(s), dtype=torch.float64) - p
    torch.testing.assert_close(q @ b, torch.zeros_like(b), rtol=0, atol=0.01)
    torch.testing.assert_close(c, q @ s @ q, rtol=0, atol=0.01)
    # So the mean's error is all that the exact mean has to say, and the spread is too wide by just that.
    said = (q @ a @ s @ a.T @ q).trace()
    torch.testing.assert_close(said / right.trace(), torch.tensor(0.456**2, dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(c.trace(), said + right.trace(), rtol=0, atol=0.02)
