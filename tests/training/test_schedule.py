"""From the image clock to noise levels, rates and decays."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from atonce.noise.curricula import ect_r, ict_stages, mu_ct, n_ct, n_ict
from atonce.noise.draws import lognormal_interval_pmf
from atonce.noise.karras import karras_grid
from atonce.training.ema import decay_at
from atonce.training.presets import ct, diffusion, ect, ict
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_pairs, learning_rate, stage_at

ICT = ict(images=400_000, batch=100)


class TestStage:
    def test_ict_stages_are_those_of_the_curriculum(self) -> None:
        boundaries = [(k, stage_at(ICT, k).points) for k in range(0, 400_000, 1000)]
        changes = [boundaries[0]] + [b for a, b in zip(boundaries, boundaries[1:], strict=False) if a[1] != b[1]]
        assert changes == [(i * 50_000, 10 * 2**i + 1) for i in range(8)]
        assert changes == ict_stages(400_000)
        assert stage_at(ICT, 49_999).points == 11
        assert stage_at(ICT, 50_000).points == 21

    @given(st.integers(100, 10**9), st.floats(0, 1))
    def test_ict_is_n_ict_of_the_clock(self, images: int, share: float) -> None:
        seen = int(share * images)
        assert stage_at(ict(images=images, batch=1), seen).points == n_ict(seen, images, 10, 1280)

    @pytest.mark.parametrize("form", ["code", "paper"])
    def test_ct(self, form: str) -> None:
        recipe = ct(images=800_000, batch=1, mu=f"ct-{form}")
        for k in (0, 1, 1000, 10_000, 400_000, 799_999):
            expected = Stage(points=n_ct(k, 800_000, 2, 150), mu=mu_ct(k, 800_000, 2, 150, 0.9, form))  # type: ignore[arg-type]
            assert stage_at(recipe, k) == expected
        assert abs(stage_at(recipe, 0).mu - (0.81 if form == "code" else 0.9)) < 1e-12

    def test_fixed(self) -> None:
        recipe = Recipe(curriculum="fixed", s0=17, s1=17, pairs="karras", target="ema", mu=0.95)
        assert {stage_at(recipe, k) for k in (0, 1000, recipe.images - 1)} == {Stage(points=18, mu=0.95)}

    def test_ect_has_equal_stages_and_no_more(self) -> None:
        recipe = ect(images=800, batch=1, ect_stages=8)
        assert [stage_at(recipe, k).index for k in (0, 99, 100, 199, 700, 799, 800, 5000)] == [0, 0, 1, 1, 7, 7, 7, 7]

    def test_denoising_has_none(self) -> None:
        assert stage_at(diffusion(), 12345) == Stage()


class TestPairs:
    def test_neighbours_on_the_grid(self) -> None:
        stage = Stage(points=21)
        t, r = draw_pairs(ICT, stage, torch.arange(2000))
        grid = karras_grid(21)
        place = torch.searchsorted(grid, t)
        assert t.dtype == torch.float64
        assert torch.equal(grid[place], t)
        assert torch.equal(grid[place - 1], r)

    def test_how_often_each_interval_is_drawn(self) -> None:
        t, _ = draw_pairs(ICT, Stage(points=11), torch.arange(40_000))
        counts = torch.bincount(torch.searchsorted(karras_grid(11), t) - 1, minlength=10)
        expected = 40_000 * lognormal_interval_pmf(karras_grid(11))
        assert stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), 9) > 1e-3
        uniform = dataclasses.replace(ICT, pairs="karras")
        t, _ = draw_pairs(uniform, Stage(points=11), torch.arange(40_000))
        counts = torch.bincount(torch.searchsorted(karras_grid(11), t) - 1, minlength=10)
        assert stats.chi2.sf(float(((counts - 4000) ** 2 / 4000).sum()), 9) > 1e-3

    def test_large_noise_is_rare(self) -> None:
        """P(sigma > 10) is .0444 for iCT's draw and .3289 for the uniform one; P_mean = +1.1 would give another .27."""
        index = torch.arange(40_000)
        for pairs, expected in (("lognormal-intervals", 0.0444), ("karras", 0.3289)):
            t, r = draw_pairs(dataclasses.replace(ICT, pairs=pairs), Stage(points=1281), index)  # type: ignore[arg-type]
            share = float(((t * r).sqrt() > 10).double().mean())
            assert abs(share - expected) < 0.006, (pairs, share)

    @pytest.mark.parametrize("stage", [0, 1, 7])
    def test_ect(self, stage: int) -> None:
        recipe = ect()
        t, r = draw_pairs(recipe, Stage(index=stage), torch.arange(20_000))
        assert stats.kstest(((t.log() + 1.1) / 2.0).numpy(), "norm").pvalue > 0.01
        assert torch.equal(r, ect_r(t, stage, 2.0, 8.0, 1.0))
        assert bool(((r >= 0) & (r < t)).all())
        assert bool((r == 0).any()) == (stage < 2)
        assert bool((t.float() > r.float()).all())

    def test_denoising(self) -> None:
        t, r = draw_pairs(diffusion(), Stage(), torch.arange(20_000))
        assert stats.kstest(((t.log() + 1.2) / 1.2).numpy(), "norm").pvalue > 0.01
        assert not r.any()

    @given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
    def test_a_function_of_seed_and_index(self, indices: list[int]) -> None:
        for recipe, stage in ((ICT, Stage(points=41)), (ect(), Stage(index=2)), (diffusion(), Stage())):
            t, r = draw_pairs(recipe, stage, torch.tensor(indices))
            for i, index in enumerate(indices):
                alone = draw_pairs(recipe, stage, torch.tensor([index]))
                assert (float(alone[0]), float(alone[1])) == (float(t[i]), float(r[i]))
        other = draw_pairs(dataclasses.replace(ICT, seed=1), Stage(points=1281), torch.arange(50))[0]
        assert not torch.equal(other, draw_pairs(ICT, Stage(points=1281), torch.arange(50))[0])

    def test_the_finest_pairs_stay_apart_in_float32(self) -> None:
        t, r = draw_pairs(ICT, Stage(points=1281), torch.arange(20_000))
        assert bool((t.float() > r.float()).all())
        last = ect(ect_q=4.0, ect_stages=10)
        t, r = draw_pairs(last, Stage(index=9), torch.arange(20_000))
        assert bool((t.float() > r.float()).all())


class TestLearningRate:
    def test_constant(self) -> None:
        assert {learning_rate(ICT, k) for k in (0, 1000, 399_900)} == {1e-4}

    def test_ramp_up_is_linear(self) -> None:
        recipe = dataclasses.replace(ICT, lr_rampup=1000, lr=1.0)
        assert [learning_rate(recipe, k) for k in (0, 100, 800, 900, 1000, 5000)] == pytest.approx([0.1, 0.2, 0.9, 1, 1, 1])

    def test_cooldown_is_half_a_cosine(self) -> None:
        recipe = dataclasses.replace(ICT, lr_cooldown=0.25, lr=1.0)
        assert learning_rate(recipe, 300_000) == 1.0
        assert learning_rate(recipe, 325_000) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
        assert learning_rate(recipe, 350_000) == pytest.approx(0.5)
        assert 0 < learning_rate(recipe, 399_900) < 1e-5
        assert learning_rate(recipe, 400_000) == 0.0
        assert learning_rate(recipe, 500_000) == 0.0

    def test_cooldown_over_the_whole_run(self) -> None:
        recipe = dataclasses.replace(ICT, lr_cooldown=1.0, lr=1.0)
        assert learning_rate(recipe, 0) == 1.0
        assert learning_rate(recipe, 200_000) == pytest.approx(0.5)

    @given(st.integers(0, 400_000), st.floats(0, 1), st.integers(0, 400_000))
    def test_never_above_the_rate_nor_below_zero(self, seen: int, cooldown: float, ramp: int) -> None:
        recipe = dataclasses.replace(ICT, lr_cooldown=cooldown, lr_rampup=ramp)
        assert 0 <= learning_rate(recipe, seen) <= recipe.lr


class TestAverages:
    def test_the_preset_of_the_teacher_has_edms_average(self) -> None:
        """EDM: half-life = min(0.5 M, 5 % of the images seen)."""
        recipe = diffusion()
        (rate,) = recipe.averages.values()

        def decay(seen: int) -> float:
            return decay_at(rate, batch=recipe.batch, images_seen=seen, rampup=recipe.ema_rampup)

        for seen in (512, 100_352, 5_000_192):
            assert recipe.batch * math.log(0.5) / math.log(decay(seen)) == pytest.approx(0.05 * seen, rel=1e-9)
        assert decay(10_000_384) == decay(200_000_000) == pytest.approx(0.5 ** (512 / 500_000), rel=1e-12)
