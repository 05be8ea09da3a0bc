"""The page's own mathematics in Chromium against the package's closed forms, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import atonce.studio
from atonce.noise.curricula import n_ict
from atonce.noise.draws import inverse_delta_weight, lognormal_interval_pmf
from atonce.noise.karras import karras_grid
from atonce.objectives.discrete import teacher_step
from atonce.objectives.distances import huber_constant, pseudo_huber
from atonce.studio.learn_net import answer, packed, trained
from atonce.studio.learn_world import P_MEAN, P_STD, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, facts, world

ASSETS = Path(atonce.studio.__file__).parent / "assets"
CLOSE = 1e-6


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    """A blank page in Chromium that knows the mathematics and the world, and nothing else."""
    sheet = browser.new_page()
    sheet.set_content("<!doctype html><title>mathematics</title>")
    sheet.add_script_tag(content=(ASSETS / "learn-math.js").read_text(encoding="utf-8"))
    sheet.evaluate("([world, layers]) => { window.world = world; window.layers = layers; }", [facts(), packed()])
    yield sheet
    sheet.close()


def ask(page: Any, expression: str, value: Any = None) -> torch.Tensor:
    """What an expression of the page gives, with ``m`` for its mathematics, as float64."""
    found = page.evaluate("(a) => { const m = atonce.learn.math; return " + expression + "; }", value)
    return torch.tensor(found, dtype=torch.float64)


def points(n: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy points of the world over all noise levels: x [n, 2] and sigma [n]."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.exp(torch.linspace(-6.2, 4.38, n, dtype=torch.float64))
    return world().sample(n, 3) + sigma[:, None] * torch.randn(n, 2, generator=generator, dtype=torch.float64), sigma


def each(name: str) -> str:
    """The expression that calls a function (world, x, sigma) for each of the points."""
    return f"a.map(([x, sigma]) => m.{name}(world, x, sigma))"


def pairs(x: torch.Tensor, sigma: torch.Tensor) -> list[Any]:
    """Points and levels as the page takes them."""
    return [[list(row), float(level)] for row, level in zip(x.tolist(), sigma, strict=True)]


def test_denoiser_and_velocity(page: Any) -> None:
    x, sigma = points()
    for name, exact in (("denoiser", world().denoiser(x, sigma)), ("velocity", world().velocity(x, sigma))):
        assert torch.allclose(ask(page, each(name), pairs(x, sigma)), exact, rtol=CLOSE, atol=CLOSE), name


def test_the_exact_consistency_function(page: Any) -> None:
    x, sigma = points()
    exact = world().consistency(x, sigma, SIGMA_MIN)
    found = ask(page, "a.map(([x, sigma]) => m.origin(world, x, sigma, world.sigma_min))", pairs(x, sigma))
    assert float((found - exact).abs().max()) < CLOSE
    # and a whole way down is one function value: every state on it has the same origin
    way = page.evaluate("(a) => atonce.learn.math.solve(world, a, 80, 0.002)", [41.0, -67.0])
    states = torch.tensor([each["x"] for each in way], dtype=torch.float64)
    levels = torch.tensor([each["sigma"] for each in way], dtype=torch.float64)
    assert float(levels[0]) == SIGMA_MAX
    assert float(levels[-1]) == SIGMA_MIN
    ends = world().consistency(states, levels, SIGMA_MIN)
    assert float((ends - states[-1]).abs().max()) < CLOSE


def test_upwards_and_back(page: Any) -> None:
    x, sigma = points()
    up = ask(page, "a.map(([x, sigma]) => m.flow(world, x, sigma, 80))", pairs(x, sigma))
    exact = world().solution(x, sigma, SIGMA_MAX)
    assert torch.allclose(up, exact, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("order", [1, 2])
def test_solver_steps_are_the_packages_teacher_steps(page: Any, order: int) -> None:
    x, t = points()
    r = 0.7 * t
    exact = teacher_step(world().denoiser, order)(x, x, x, t, r)
    found = ask(page, f"a.map(([x, t]) => m.step(world, x, t, 0.7 * t, {order}))", pairs(x, t))
    assert torch.allclose(found, exact, rtol=CLOSE, atol=CLOSE)


def test_a_walk_gets_nearer_to_the_origin_with_more_steps(page: Any) -> None:
    x = torch.tensor([[30.0, 52.0]], dtype=torch.float64)
    exact = world().consistency(x, SIGMA_MAX, SIGMA_MIN)
    errors = {}
    for order in (1, 2):
        for n in (32, 64):
            levels = karras_grid(n + 1).flip(0).tolist()
            end = ask(page, f"m.walk(world, a[0], a[1], {order}).at(-1)", [x[0].tolist(), levels])
            errors[order, n] = float((end - exact[0]).norm())
    # global errors fall by 2 and by 4 when the steps are halved
    assert 1.7 < errors[1, 32] / errors[1, 64] < 2.4
    assert 3.2 < errors[2, 32] / errors[2, 64] < 5.0
    assert errors[2, 32] < errors[1, 32]


@pytest.mark.parametrize("n", [2, 11, 18, 161, 1281])
def test_grid_choice_and_weight(page: Any, n: int) -> None:
    grid = karras_grid(n)
    assert torch.allclose(ask(page, f"m.grid({n}, 0.002, 80, 7)"), grid, rtol=1e-12, atol=0)
    found = ask(page, f"m.lognormal(m.grid({n}, 0.002, 80, 7), {P_MEAN}, {P_STD})")
    assert float((found - lognormal_interval_pmf(grid, P_MEAN, P_STD)).abs().max()) < 1e-12
    weight = ask(page, f"m.inverseDelta(m.grid({n}, 0.002, 80, 7))")
    assert torch.allclose(weight, inverse_delta_weight(grid), rtol=1e-8, atol=0)


def test_curriculum(page: Any) -> None:
    counts = [0, 1, 124, 125, 399, 500, 874, 875, 999, 1000]
    assert ask(page, "a.map((k) => m.nIct(k, 1000, 10, 1280))", counts).tolist() == [n_ict(k, 1000) for k in counts]


def test_pseudo_huber(page: Any) -> None:
    c, lengths = huber_constant(2), [0.0, 1e-6, 1e-3, 0.1, 3.0]
    exact = [float(pseudo_huber(torch.tensor([[e, 0.0]], dtype=torch.float64), torch.zeros(1, 2), c)) for e in lengths]
    assert ask(page, f"a.map((e) => m.huber(e, {c}))", lengths).tolist() == pytest.approx(exact, rel=1e-9, abs=1e-18)


def test_the_trained_model(page: Any) -> None:
    x, sigma = points(60)
    found = ask(
        page,
        f"(() => {{ const net = m.network(layers); return a.map(([x, s]) => m.trained(net, x, s, {SIGMA_DATA}, 0.002)); }})()",
        pairs(x, sigma),
    )
    exact = answer(trained(), x, sigma)
    assert float((found - exact).abs().max()) < CLOSE


def test_the_mean_over_all_data_points_is_eulers_step(page: Any) -> None:
    # Consistency training puts y + r z where distillation puts an Euler step; given x_t both have the same mean.
    x, t, r = [0.9, -1.3], 1.6, 1.1
    drawn = ask(
        page,
        "(() => { const draw = m.random(3), out = []; "
        "for (let i = 0; i < 40000; i++) out.push(m.clean(world, a[0], a[1], draw)); return out; })()",
        [x, t],
    )
    z = (torch.tensor(x, dtype=torch.float64) - drawn) / t
    ends = drawn + r * z
    euler = ask(page, "m.step(world, a[0], a[1], a[2], 1)", [x, t, r])
    error = ends.std(0) / 200
    assert bool(((ends.mean(0) - euler).abs() < 5 * error).all())


def test_seeded_numbers_are_uniform_and_the_same_each_time(page: Any) -> None:
    expression = "(() => { const draw = m.random(9); return Array.from({ length: 5000 }, draw); })()"
    first, second = ask(page, expression), ask(page, expression)
    assert torch.equal(first, second)
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    assert abs(float(first.mean()) - 0.5) < 5 / (12 * 5000) ** 0.5
