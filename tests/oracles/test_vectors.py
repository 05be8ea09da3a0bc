"""Numbers that were computed elsewhere, in double precision, from the published formulas: each is met to its printed digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from atonce.noise.curricula import decay_half_life, ect_r, half_life_to_decay, mu_ct, n_ct, n_ict
from atonce.noise.draws import inverse_delta_weight, lognormal_interval_pmf, lognormal_sigma, uniform_interval_pmf
from atonce.noise.karras import karras_grid
from atonce.noise.worlds import (
    Gaussian,
    Mixture,
    ct_fixed_point,
    gaussian_average_velocity,
    gaussian_trigflow,
)


def printed(values: Tensor | float, text: str, decimals: int | None = None) -> None:
    """Asserts that the values round to the printed ones: half a unit in the last place (trailing zeros count)."""
    words = text.replace(",", " ").split()
    actual = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    assert len(actual) == len(words)
    for value, word in zip(actual, words, strict=True):
        mantissa, _, exponent = word.partition("e")
        places = (decimals if decimals is not None else len(mantissa.partition(".")[2])) - int(exponent or 0)
        assert abs(value - float(word)) <= 0.5000001 * 10.0**-places, f"{value!r} is not {word}"


def _column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


class TestKarrasGrid:
    def test_18_points(self) -> None:
        text = """80, 57.58598472, 40.7855738, 28.3745846, 19.35245298, 12.91008238, 8.40093531, 5.31519452, 3.25682152,
            1.92333984, 1.08817064, 0.58534812, 0.29644228, 0.13951647, 0.05994731, 0.02293452, 0.00752802, 0.002"""
        printed(karras_grid(18).flip(0), text, decimals=8)

    def test_10_points(self) -> None:
        text = "0.002, 0.02043533, 0.11663856, 0.46997906, 1.50174198, 4.0661236, 9.72320136, 21.10867674, 42.41518932, 80"
        printed(karras_grid(10), text, decimals=8)

    def test_11_points(self) -> None:
        text = """0.002, 0.01672075, 0.0850872, 0.31828329, 0.96541693, 2.51521898, 5.83894763, 12.38157614, 24.40834179,
            45.31373408, 80"""
        printed(karras_grid(11), text, decimals=8)

    def test_40_points(self) -> None:
        grid = karras_grid(40).flip(0)
        printed(grid[:5], "80, 69.45094604, 60.11739476, 51.88031814, 44.63020157", decimals=8)
        printed(grid[-5:], "0.01752204, 0.01081205, 0.00643711, 0.00367659, 0.002", decimals=8)


class TestConsistencyTrainingSchedules:
    @pytest.mark.parametrize(
        ("s1", "mu0", "K", "k", "n", "paper", "code"),
        [
            (150, 0.9, 800_000, 0, 2, ".90000000", ".81000000"),
            (150, 0.9, 800_000, 1, 3, ".93216975", ".90000000"),
            (150, 0.9, 800_000, 1_000, 6, ".96548938", ".95873152"),
            (150, 0.9, 800_000, 10_000, 17, ".98768115", ".98691628"),
            (150, 0.9, 800_000, 100_000, 54, ".99610536", ".99603202"),
            (150, 0.9, 800_000, 400_000, 107, ".99803258", ".99801404"),
            (150, 0.9, 800_000, 800_000, 151, ".99860547", ".99859618"),
            (200, 0.95, 800_000, 0, 2, ".95000000", ".90250000"),
            (200, 0.95, 800_000, 1, 3, ".96638253", ".95000000"),
            (200, 0.95, 800_000, 100, 4, ".97467943", ".96638253"),
            (200, 0.95, 800_000, 10_000, 23, ".99554965", ".99534783"),
            (200, 0.95, 800_000, 400_000, 143, ".99928287", ".99927782"),
            (200, 0.95, 800_000, 800_000, 201, ".99948975", ".99948720"),
            (150, 0.95, 1_000_000, 10_000, 16, ".99360885", ".99318423"),
            (150, 0.95, 1_000_000, 500_000, 107, ".99904171", ".99903267"),
            (150, 0.95, 1_000_000, 1_000_000, 151, ".99932085", ".99931632"),
        ],
    )
    def test_points_and_decay(self, s1: int, mu0: float, K: int, k: int, n: int, paper: str, code: str) -> None:
        assert n_ct(k, K, 2, s1) == n
        printed(mu_ct(k, K, 2, s1, mu0, form="paper"), paper)
        printed(mu_ct(k, K, 2, s1, mu0, form="code"), code)

    def test_improved_points(self) -> None:
        ks = (0, 49_999, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 350_000, 400_000)
        assert [n_ict(k, 400_000) for k in ks] == [11, 11, 21, 41, 81, 161, 321, 641, 1281, 1281]
        assert (n_ict(1542, 12_345), n_ict(1543, 12_345), n_ict(12_344, 12_345)) == (11, 21, 1281)
        assert (n_ict(124, 1000), n_ict(125, 1000)) == (11, 21)


class TestLogNormalIntervals:
    def test_10_points(self) -> None:
        pmf = lognormal_interval_pmf(karras_grid(10))
        text = ".07683723 .22038819 .2706995 .20763549 .12123739 .06012866 .02700145 .01141523 .00465684"
        printed(pmf, text, decimals=8)
        assert int(pmf.argmax()) + 1 == 3
        z = (torch.log(karras_grid(10)) + 1.1) / (2.0 * math.sqrt(2.0))
        printed(torch.erf(z[-1]) - torch.erf(z[0]), "1.98332630")
        torch.testing.assert_close(pmf, torch.diff(torch.erf(z)) / (torch.erf(z[-1]) - torch.erf(z[0])), rtol=1e-12, atol=0)

    def test_11_points(self) -> None:
        text = """.06263299 .18173698 .24550142 .21349445 .14244606 .08060462 .04107991 .01958009 .00894387 .00397961"""
        printed(lognormal_interval_pmf(karras_grid(11)), text)
        text = """67.93130651 14.62705769 4.28823664 1.54527588 .64524369 .30086692 .15284377 .08314787 .04783455 .02882985"""
        printed(inverse_delta_weight(karras_grid(11)), text)

    def test_1281_points(self) -> None:
        grid = karras_grid(1281)
        pmf, weight = lognormal_interval_pmf(grid), inverse_delta_weight(grid)
        assert int(pmf.argmax()) == 329
        printed(grid[329], ".186089")
        printed(pmf.max(), ".00195569")
        printed(pmf[0], "1.498212e-4")
        printed(pmf[-1], "2.010947e-5")
        printed((pmf * torch.log(grid[:-1])).sum(), "-1.093057")
        printed(weight[0], "25584.7238")
        printed(weight[-1], "2.93603127")
        printed((pmf * weight).sum(), "1129.1356")

    def test_161_points(self) -> None:
        grid = karras_grid(161)
        printed(lognormal_interval_pmf(grid).max(), ".01564371")
        printed((lognormal_interval_pmf(grid) * inverse_delta_weight(grid)).sum(), "141.1191")

    def test_share_of_high_noise(self) -> None:
        """Why the draw changed: uniform intervals spend a third of the work above sigma = 10."""
        printed(stats.norm.sf((math.log(10) + 1.1) / 2.0), ".044444")
        u = torch.linspace(0.5e-6, 1 - 0.5e-6, 10**6, dtype=torch.float64)
        printed((lognormal_sigma(u, -1.1, 2.0) > 10).double().mean(), ".04444")
        whole = karras_grid(1281)[:-1] > 10  # intervals that lie above 10 as a whole: 421 of 1280
        printed(uniform_interval_pmf(1281)[whole].sum(), ".328906")


class TestGaussian:
    world = Gaussian(0.0, 0.5)

    def _integrate(self, grid: list[float], heun: bool) -> float:
        """The slope of EDM's sampler on x = 1, with the last step to 0 by Euler."""
        x = torch.ones(1, 1, dtype=torch.float64)
        for t, r in pairwise([*grid, 0.0]):
            slope = self.world.velocity(x, t)
            euler = x + (r - t) * slope
            x = x + (r - t) * 0.5 * (slope + self.world.velocity(euler, r)) if heun and r > 0 else euler
        return float(x)

    def test_consistency(self) -> None:
        x = _column(1.0)
        printed(self.world.consistency(x, 80.0), ".0062499279")
        printed(self.world.solution(x, 80.0, 0.0), ".0062498779")
        torch.testing.assert_close(self.world.denoiser(_column(3.0), 2.0), _column(3.0 * 0.25 / 4.25), rtol=1e-15, atol=0)

    def test_solvers_of_18_points(self) -> None:
        grid = karras_grid(18).flip(0).tolist()
        printed(self._integrate(grid, heun=True), ".00659530796")
        printed(self._integrate(grid, heun=False), ".0052878930")

    @pytest.mark.parametrize(
        ("start", "euler", "heun", "exact"),
        [
            (0, ".71983575", ".71983871", ".71983788"),
            (5, ".65124981", ".65146479", ".65138987"),
            (11, ".71464523", ".76674998", ".75507010"),
            (16, ".99983358", ".99989468", ".99989468"),
        ],
    )
    def test_one_teacher_step(self, start: int, euler: str, heun: str, exact: str) -> None:
        t, r = karras_grid(18).flip(0)[start : start + 2].tolist()
        x = _column(1.0)
        slope = self.world.velocity(x, t)
        there = x + (r - t) * slope
        printed(there, euler)
        printed(x + (r - t) * 0.5 * (slope + self.world.velocity(there, r)), heun)
        printed(self.world.solution(x, t, r), exact)

    def test_mean_moves_with_the_data(self) -> None:
        m, s, t, x = 0.7, 0.5, 1.3, _column(-0.4)
        moved = Gaussian(m, s)
        torch.testing.assert_close(moved.denoiser(x, t), (s**2 * x + t**2 * m) / (s**2 + t**2), rtol=1e-14, atol=0)
        factor = math.sqrt((s**2 + 0.002**2) / (s**2 + t**2))
        torch.testing.assert_close(moved.consistency(x, t), m + (x - m) * factor, rtol=1e-14, atol=0)

    def test_variance_after_two_steps(self) -> None:
        end, tau = 0.002, 0.821
        f_first = float(self.world.consistency(_column(1.0), 80.0))
        f_second = float(self.world.consistency(_column(1.0), tau))
        first = f_first**2 * (0.25 + 80.0**2)
        printed(f_second**2 * (first + tau**2 - end**2), ".250004")
        printed(f_second**2 * (first + tau**2), ".25000508")
        printed(80.0 * f_first, ".49999423")


class TestTrigFlow:
    @pytest.mark.parametrize(
        ("t", "teacher", "f", "student"),
        [
            (0.2, "-.30097320", "1.01513799", "-.35306320"),
            (math.pi / 4, "-1.20000000", "1.26491106", "-1.57770876"),
            (1.1, "-1.49976301", "1.57268462", "-2.51139870"),
            (1.5, "-.41709885", "1.98515566", "-3.83845229"),
        ],
    )
    def test_unit_data(self, t: float, teacher: str, f: str, student: str) -> None:
        answer = gaussian_trigflow(_column(1.0), t, std=1.0, sigma_data=0.5)
        printed(answer.teacher, teacher)
        printed(answer.f, f)
        printed(answer.student, student)

    def test_tangent(self) -> None:
        """The tangent of continuous-time distillation: 0 for the exact student, known for the network that answers 0."""
        t, x, sigma_data = 0.9, _column(0.7), 0.5
        exact = gaussian_trigflow(x, t, std=1.0, sigma_data=sigma_data)
        cos, sin = math.cos(t), math.sin(t)

        def tangent(F: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
            return -(cos**2) * sigma_data * (F - exact.teacher), -cos * sin * (x + sigma_data * rate)

        assert float(sum(tangent(exact.student, exact.student_rate))) == pytest.approx(0, abs=1e-14)
        first, second = tangent(torch.zeros_like(x), torch.zeros_like(x))
        printed(first, "-.18298859")
        printed(second, "-.34084667")
        g = first + second
        printed(g, "-.52383526")
        printed(g / (g.abs() + 0.1), "-.83970127")


class TestEasyConsistencyTuning:
    @pytest.mark.parametrize(
        ("stage", "q", "t", "r"),
        [
            (0, 2, 5.0, "2.36614298"),
            (0, 2, 80.0, "40.00000000"),
            (0, 2, 1.0, "0.00000000"),
            (0, 2, 0.01, "0.00000000"),
            (1, 2, 1.0, ".21211716"),
            (1, 2, 5.0, "3.68307149"),
            (1, 2, 80.0, "60.00000000"),
            (2, 2, 0.002, ".000751"),
            (2, 2, 0.5, ".24872967"),
            (2, 2, 1.0, ".60605858"),
            (7, 2, 0.5, ".4921478"),
            (7, 2, 1.0, ".98768933"),
            (7, 2, 80.0, "79.6875"),
        ],
    )
    def test_r(self, stage: int, q: float, t: float, r: str) -> None:
        printed(ect_r(torch.tensor([t]).double(), stage, q), r)

    def test_equal_schedules(self) -> None:
        t = torch.logspace(-3, 2, 40, dtype=torch.float64)
        torch.testing.assert_close(ect_r(t, 0, q=256), ect_r(t, 7, q=2), rtol=1e-14, atol=0)
        for stage in range(4):
            torch.testing.assert_close(ect_r(t, stage, q=4), ect_r(t, 2 * stage + 1, q=2), rtol=1e-14, atol=0)


class TestMeanFlow:
    @pytest.mark.parametrize(
        ("t", "r", "v", "u"),
        [
            (1.0, 0.0, "1.00000000", ".50000000"),
            (1.0, 0.5, "1.00000000", ".88196601"),
            (0.7, 0.2, "1.21951220", ".75060990"),
            (0.5, 0.5, "1.20000000", "1.20000000"),
        ],
    )
    def test_velocities(self, t: float, r: float, v: str, u: str) -> None:
        z = _column(1.0)
        printed(gaussian_average_velocity(z, t, t), v)
        printed(gaussian_average_velocity(z, r, t), u)


def test_moving_averages() -> None:
    printed(half_life_to_decay(512, 5e5), ".9992904691")
    printed(half_life_to_decay(4096, 5e7), ".9999432190")
    for beta, steps in ((0.9999, "6931.1"), (0.9993, "989.9"), (0.99993, "9901.8"), (0.99997, "23104.6")):
        printed(decay_half_life(beta), steps)


class TestBiasOfConsistencyTraining:
    @pytest.mark.parametrize(
        ("n", "a", "ratio"),
        [
            (11, ".00470480", ".75278"),
            (21, ".00542219", ".86756"),
            (81, ".00603181", ".96510"),
            (161, ".00613990", ".98240"),
            (641, ".00622224", ".99557"),
            (1281, ".00623607", ".99778"),
        ],
    )
    def test_fixed_point(self, n: int, a: str, ratio: str) -> None:
        multiplier = ct_fixed_point(karras_grid(n), 0.5)
        assert multiplier.shape == (n,)
        assert float(multiplier[0]) == 1
        printed(multiplier[-1], a)
        printed(multiplier[-1] / Gaussian(0.0, 0.5).consistency(_column(1.0), 80.0), ratio)

    def test_gradient_of_one_pair_shrinks_with_slope_two(self) -> None:
        """E[(f(x_t) - f(x_r)) x_t] at the exact f = a x, with E[x_t^2] = s^2 + t^2 and E[x_r x_t] = s^2 + r t."""
        world, t = Gaussian(0.0, 0.5), 1.0

        def gradient(r: float) -> float:
            a_t, a_r = (float(world.consistency(_column(1.0), level)) for level in (t, r))
            return a_t * (0.25 + t**2) - a_r * (0.25 + r * t)

        steps = (0.1, 0.01, 0.001)
        values = [gradient(t * (1 - step)) for step in steps]
        for value, text in zip(values, ("5.3e-4", "4.5e-6", "4.5e-8"), strict=True):
            printed(value, text)
        slope = math.log10(values[1] / values[2])
        assert slope == pytest.approx(2, abs=0.02)

    @pytest.mark.parametrize(("std", "expected"), [(0.1, 0.377), (0.0, 0.374)])
    @pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-4])
    def test_sign_of_the_residual_on_skewed_data(self, std: float, expected: float, step: float) -> None:
        """For c = 0 the expected gradient at the exact function does not vanish however small the step.

        f rises in x, so f(x_t) > f(x_r) where x_r lies below the trajectory through x_t, which is where y is below a bound.
        """
        world, t, x, r = _skewed(std), 1.0, _column(0.3), 1.0 - step
        bound = float(x - t * (x - world.solution(x, t, r)) / (t - r))
        below = sum(p * cdf(bound) for p, _, cdf in _posterior(world, 0.3, t))
        assert 2 * below - 1 == pytest.approx(expected, abs=0.004 + step)

    def test_residual_over_a_fixed_c_vanishes(self) -> None:
        """For c > 0 it does vanish, and so does the sign on symmetric data."""
        world, t, x, c = _skewed(0.1), 1.0, _column(0.3), 0.03
        means = []
        for step in (0.1, 0.01, 0.001):
            total = 0.0
            for p, quantiles, _ in _posterior(world, 0.3, t):
                below = x - step * t * (x - quantiles) / t
                residual = world.consistency(x, t) - world.consistency(below, t * (1 - step))
                total += p * float((residual / torch.sqrt(residual**2 + c**2)).mean())
            means.append(abs(total))
        assert means[0] > means[1] > means[2]
        assert means[2] < 2e-3
        symmetric = Mixture(_column(-1.0, 1.0), torch.full((2,), 0.1).double(), torch.full((2,), 0.5).double())
        centre = _column(0.0)
        bound = float(centre - (centre - symmetric.solution(centre, 1.0, 0.999)) / 0.001)
        assert sum(p * cdf(bound) for p, _, cdf in _posterior(symmetric, 0.0, 1.0)) == pytest.approx(0.5, abs=1e-9)


def _skewed(std: float) -> Mixture:
    return Mixture(_column(-1.0, 1.0), torch.full((2,), std).double(), torch.tensor([0.8, 0.2]).double())


def _posterior(world: Mixture, x: float, t: float) -> list[tuple[float, Tensor, Callable[[float], float]]]:
    """For each component of a two-part mixture its posterior weight, and quantiles and distribution function of y given x."""
    means, s = world.means[:, 0].numpy(), world.stds.numpy()
    joint = world.weights.numpy() * stats.norm.pdf(x, means, np.sqrt(s**2 + t**2))
    parts = []
    for p, m, std in zip(joint / joint.sum(), means, s, strict=True):
        centre, width = m + std**2 / (std**2 + t**2) * (x - m), max(std * t / math.hypot(std, t), 1e-12)
        law = stats.norm(centre, width)
        parts.append((float(p), torch.as_tensor(law.ppf((np.arange(100) + 0.5) / 100))[:, None], law.cdf))
    return parts
