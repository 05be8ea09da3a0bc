"""Snapshots of power-function averages and what is reconstructed from them."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate

from atonce.core.errors import InputError, ModelFileError
from atonce.networks.unet import UNet, UNetConfig
from atonce.training.ema import Average, Rate, decay_at, gamma_of
from atonce.training.flat import FlatParameters
from atonce.training.posthoc import (
    coefficients,
    inner_product,
    list_snapshots,
    reconstruct,
    save_snapshot,
    snapshot_due,
)

STEPS, BATCH, COUNT = 2000, 64, 16
TOTAL = STEPS * BATCH
TRACKED = (0.05, 0.1)


@functools.cache
def trajectory() -> NDArray[np.float64]:
    """Weights [steps, 30] with offsets of order 1: a random walk and a drift, as training leaves behind, and noise."""
    generator = np.random.Generator(np.random.Philox(1))
    walk = generator.normal(size=(STEPS, 30)).cumsum(0) / STEPS**0.5
    drift = np.log1p(np.arange(STEPS)[:, None] / 50) * generator.normal(size=30) / 4
    return 3 + generator.normal(size=30) + walk + drift + 0.2 * generator.normal(size=(STEPS, 30))


def tracked(sigma_rel: float, steps: int = STEPS) -> NDArray[np.float64]:
    """The average kept during the run, step by step."""
    average = np.full(30, 1e6)  # must be forgotten in the first step
    for step, weights in enumerate(trajectory()[:steps], 1):
        beta = decay_at(Rate("power", sigma_rel), batch=BATCH, images_seen=step * BATCH)
        average = beta * average + (1 - beta) * weights
    return average


def as_state(values: NDArray[np.float64]) -> dict[str, torch.Tensor]:
    tensor = torch.from_numpy(values).float()
    return {"a.weight": tensor[:24].reshape(2, 3, 2, 2), "a.bias": tensor[24:29], "scale": tensor[29]}


def as_array(state: dict[str, torch.Tensor]) -> NDArray[np.float64]:
    return torch.cat([state[name].flatten() for name in ("a.weight", "a.bias", "scale")]).double().numpy()


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of 2000 steps leaves: 16 times two averages."""
    folder = tmp_path_factory.mktemp("run") / "snapshots"
    for sigma_rel in TRACKED:
        average = np.zeros(30)
        for step, weights in enumerate(trajectory(), 1):
            beta = decay_at(Rate("power", sigma_rel), batch=BATCH, images_seen=step * BATCH)
            average = beta * average + (1 - beta) * weights
            if snapshot_due(step * BATCH, batch=BATCH, total=TOTAL, count=COUNT):
                save_snapshot(folder, step * BATCH, Rate("power", sigma_rel), as_state(average))
    return folder


class TestProfiles:
    @given(st.floats(0.01, 0.28), st.floats(0.1, 2), st.floats(0.01, 0.28), st.floats(0.1, 2))
    def test_inner_products_are_the_integrals(self, a: float, t_a: float, b: float, t_b: float) -> None:
        def profile(tau: float, gamma: float, t: float) -> float:
            return (gamma + 1) * (tau / t) ** gamma / t if tau <= t else 0.0

        x, y, end = gamma_of(a), gamma_of(b), min(t_a, t_b)
        expected, _ = integrate.quad(lambda tau: profile(tau, x, t_a) * profile(tau, y, t_b), 0, end, epsabs=0, epsrel=1e-11)
        assert inner_product(x, t_a, y, t_b) == pytest.approx(expected, rel=1e-8, abs=1e-250)
        assert inner_product(y, t_b, x, t_a) == pytest.approx(inner_product(x, t_a, y, t_b), rel=1e-12)

    def test_known_inner_products(self) -> None:
        # Uniform on [0, 1] and [0, 2]; 2 tau on [0, 1] with 3 tau^2 on [0, 1]: 6/4; 2 tau on [0, 1] with 3 tau^2 / 8 on [0, 2].
        expected = [0.5, 1.5, 6 / 8 / 4]
        np.testing.assert_allclose(inner_product([0, 1, 1], [1, 1, 1], [0, 2, 2], [2, 1, 2]), expected, rtol=1e-14)


class TestCoefficients:
    CLOCKS = tuple(TOTAL * (i + 1) / COUNT for i in range(COUNT) for _ in TRACKED)
    WIDTHS = TRACKED * COUNT

    @pytest.mark.parametrize("sigma_rel", TRACKED)
    @pytest.mark.parametrize("at", [TOTAL, TOTAL / 2, TOTAL / COUNT])
    def test_a_tracked_average_is_its_own_snapshot(self, sigma_rel: float, at: float) -> None:
        shares, residual = coefficients(self.CLOCKS, self.WIDTHS, sigma_rel, at)
        own = [float(pair == (at, sigma_rel)) for pair in zip(self.CLOCKS, self.WIDTHS, strict=True)]
        np.testing.assert_allclose(shares, own, atol=1e-10)
        assert residual < 1e-6

    @given(st.floats(0.011, 0.28), st.floats(0.07, 1))
    def test_the_shares_sum_to_one_and_the_residual_is_that_of_the_profiles(self, sigma_rel: float, share: float) -> None:
        at = share * TOTAL
        shares, residual = coefficients(self.CLOCKS, self.WIDTHS, sigma_rel, at)
        assert shares.sum() == pytest.approx(1, abs=1e-9)
        # Gauss-Legendre between the times at which a profile ends.
        edges = np.unique([0, share, *(np.array(self.CLOCKS) / TOTAL)])
        nodes, weights = np.polynomial.legendre.leggauss(40)
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        tau, weight = (middle + half * nodes).ravel(), (half * weights).ravel()

        def profile(t: float, width: float) -> NDArray[np.float64]:
            gamma = gamma_of(width)
            return np.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0)

        wanted = profile(share, sigma_rel)
        made = sum(c * profile(t / TOTAL, w) for c, t, w in zip(shares, self.CLOCKS, self.WIDTHS, strict=True) if c)
        expected = np.sqrt(weight @ (made - wanted) ** 2 / (weight @ wanted**2))
        assert residual == pytest.approx(expected, rel=1e-4, abs=1e-6)

    @pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2])
    def test_no_other_shares_with_sum_one_are_nearer(self, sigma_rel: float) -> None:
        shares, residual = coefficients(self.CLOCKS, self.WIDTHS, sigma_rel, TOTAL)
        gamma, t = np.array([gamma_of(w) for w in self.WIDTHS]), np.array(self.CLOCKS) / TOTAL
        gram, right = inner_product(gamma[:, None], t[:, None], gamma, t), inner_product(gamma, t, gamma_of(sigma_rel), 1)
        slope = gram @ shares - right  # must be the same in all directions, so that no move along sum = 1 helps
        np.testing.assert_allclose(slope, slope.mean(), atol=1e-9)
        free = np.linalg.solve(gram, right)
        norm = inner_product(gamma_of(sigma_rel), 1, gamma_of(sigma_rel), 1)
        best = np.sqrt((norm - right @ free) / norm)
        assert best <= residual < 1.05 * best  # the constraint costs little

    def test_without_the_constraint_the_network_would_be_scaled(self) -> None:
        gamma, t = np.array([gamma_of(w) for w in self.WIDTHS]), np.array(self.CLOCKS) / TOTAL
        gram = inner_product(gamma[:, None], t[:, None], gamma, t)
        sums = [np.linalg.solve(gram, inner_product(gamma, t, gamma_of(w), 1)).sum() for w in (0.15, 0.28)]
        assert sums == pytest.approx([0.9995, 0.941], abs=5e-4)

    def test_more_snapshots_are_better(self) -> None:
        residuals = []
        for count in (4, 8, 16, 32):
            clocks = [i / count for i in range(1, count + 1) for _ in TRACKED]
            residuals.append(coefficients(clocks, TRACKED * count, 0.15, 1.0)[1])
        ratios = [b / a for a, b in zip(residuals, residuals[1:], strict=False)]
        assert residuals[-1] < 0.003
        assert all(0.2 < ratio < 0.4 for ratio in ratios)  # towards 1/4: two functions an interval, an error of second order

    def test_an_average_that_is_there_twice_does_no_harm(self) -> None:
        single, twice = (coefficients(self.CLOCKS * n, self.WIDTHS * n, 0.07, TOTAL) for n in (1, 2))
        assert twice[1] == pytest.approx(single[1], abs=1e-7)
        np.testing.assert_allclose(twice[0].reshape(2, -1).sum(0), single[0], atol=1e-7)
        assert np.abs(twice[0]).sum() < 1.01 * np.abs(single[0]).sum()

    def test_later_snapshots_have_no_share(self) -> None:
        shares, _ = coefficients(self.CLOCKS, self.WIDTHS, 0.07, TOTAL * 0.55)  # 9/16 is the first clock after it
        assert (shares[np.array(self.CLOCKS) > TOTAL * 9 / 16] == 0).all()
        assert (shares[np.array(self.CLOCKS) == TOTAL * 9 / 16] != 0).all()

    @pytest.mark.parametrize(
        ("clocks", "widths", "sigma_rel", "at", "message"),
        [
            ((), (), 0.1, 1, "0 clocks and 0 sigma_rels"),
            ((1, 2), (0.1,), 0.1, 1, "2 clocks and 1 sigma_rels"),
            ((0, 2), (0.1, 0.1), 0.1, 1, "clocks above 0"),
            ((1, 2), (0.1, 0.1), 0.1, 3, "at most 2 \\(the last snapshot\\)"),
            ((1, 2), (0.1, 0.1), 0.1, 0, "above 0"),
            ((1, 2), (0.1, 0.1), 0.3, 2, "is 0.3, must be a sigma_rel from"),
        ],
    )
    def test_bad_input(self, clocks: tuple, widths: tuple, sigma_rel: float, at: float, message: str) -> None:
        with pytest.raises(InputError, match=message):
            coefficients(clocks, widths, sigma_rel, at)


class TestReconstruct:
    # Errors as a share of the distance between the average and the weights it averages; about twice what was seen.
    @pytest.mark.parametrize(
        ("sigma_rel", "at_end", "half_way"),
        [(0.05, 1e-6, 1e-6), (0.1, 1e-6, 1e-6), (0.07, 1e-3, 5e-3), (0.15, 1e-3, 8e-3), (0.2, 0.01, 0.04), (0.03, 0.01, 0.05)],
    )
    def test_it_is_the_average_that_would_have_been_tracked(
        self, snapshots: Path, sigma_rel: float, at_end: float, half_way: float
    ) -> None:
        for steps, bound in ((STEPS, at_end), (STEPS // 2, half_way)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the roughest, half-way with 8 snapshots
                state, residual = reconstruct(snapshots, sigma_rel, at=None if steps == STEPS else steps * BATCH)
            expected = tracked(sigma_rel, steps)
            spread = np.linalg.norm(trajectory()[steps - steps // 4 : steps] - expected, axis=1).mean()
            error = np.linalg.norm(as_array(state) - expected)
            assert error < bound * spread
            assert error < bound / 5 * np.linalg.norm(expected)
            assert error < max(residual, 1e-6) * spread  # the residual says how well it is matched

    def test_between_two_snapshots(self, snapshots: Path) -> None:
        steps = 15 * STEPS // COUNT + 60  # 125 apart
        with pytest.warns(
            UserWarning, match="sigma_rel 0.1 at 123,840 images is matched by the snapshots of widths 0.05, 0.1 with"
        ):
            state, residual = reconstruct(snapshots, 0.1, at=steps * BATCH)
        assert 0.1 < residual < 0.5
        expected = tracked(0.1, steps)
        nearest = min(np.linalg.norm(tracked(0.1, n * STEPS // COUNT) - expected) for n in (15, 16))
        assert np.linalg.norm(as_array(state) - expected) < 0.7 * nearest

    def test_names_shapes_and_types_are_kept(self, snapshots: Path) -> None:
        state, _ = reconstruct(snapshots, 0.07)
        wanted = as_state(tracked(0.05))
        assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}

    def test_weights_that_never_moved_come_out_unchanged(self, tmp_path: Path) -> None:
        constant = as_state(1e3 * trajectory()[0]) | {"count": torch.tensor(7), "mask": torch.tensor([True, False])}
        for clock in range(1, 9):
            for sigma_rel in TRACKED:
                save_snapshot(tmp_path, clock * 100, Rate("power", sigma_rel), constant)
        for sigma_rel in (0.04, 0.15, 0.2):
            state, _ = reconstruct(tmp_path, sigma_rel)
            for name, value in constant.items():
                torch.testing.assert_close(state[name], value, rtol=2e-7, atol=0)

    def test_what_is_not_a_float_comes_from_the_newest(self, tmp_path: Path) -> None:
        for clock in (1, 2, 3):
            for sigma_rel in TRACKED:
                save_snapshot(tmp_path, clock, Rate("power", sigma_rel), {"step": torch.tensor(clock), "x": torch.ones(1)})
        assert reconstruct(tmp_path, 0.08)[0]["step"] == 3
        assert reconstruct(tmp_path, 0.08, at=2)[0]["step"] == 2

    def test_one_average_alone(self, snapshots: Path, tmp_path: Path) -> None:
        for one in list_snapshots(snapshots):
            if one.rate.value == 0.1:
                os.link(one.path, tmp_path / one.path.name)
        exact, residual = reconstruct(tmp_path, 0.1)
        assert residual < 1e-6
        np.testing.assert_allclose(as_array(exact), tracked(0.1), rtol=1e-6)
        assert 0.01 < reconstruct(tmp_path, 0.12)[1] < 0.1


class TestNetwork:
    def test_averages_of_a_network_give_one_that_was_not_kept(self, tmp_path: Path) -> None:
        network = UNet(UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=()), 1)
        flat = FlatParameters(network)
        averages = {width: Average(flat) for width in (*TRACKED, 0.08)}
        generator, steps = torch.Generator().manual_seed(0), 200
        for step in range(1, steps + 1):
            with torch.no_grad():
                flat.values.add_(0.02 * torch.randn(flat.values.shape, generator=generator))
            for width, average in averages.items():
                average.update(decay_at(Rate("power", width), batch=4, images_seen=4 * step))
            if snapshot_due(4 * step, batch=4, total=4 * steps, count=10):
                for width in TRACKED:
                    save_snapshot(tmp_path, 4 * step, Rate("power", width), averages[width].state_dict())
        state, _ = reconstruct(tmp_path, 0.08)
        made = Average(flat)
        made.load_state_dict(state)
        kept, near = averages[0.08].values, averages[0.1].values
        assert (made.values - kept).norm() < 0.02 * (near - kept).norm()
        network.load_state_dict(network.state_dict() | state)


class TestFolder:
    def test_what_is_saved_is_listed_in_order(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "snapshots"
        assert list_snapshots(folder) == []
        state = {
            "w": torch.arange(6.0).reshape(1, 6, 1, 1).to(memory_format=torch.channels_last),
            "half": torch.ones(2).bfloat16(),
        }
        for clock, width in ((10**13, 0.1), (500, 0.1), (500, 0.05), (20_000, 1e-5), (500, 0.1)):
            path = save_snapshot(folder, clock, Rate("power", width), state)
            assert path.is_file()
        assert path.name == "snapshot-000000000500-power-0.1.safetensors"
        for other in ("notes.txt", "snapshot-000000000500-0.9999.safetensors", "snapshot-000000000500-power-0.9.safetensors"):
            (folder / other).write_text("someone else's")
        found = [(one.images_seen, one.rate.value) for one in list_snapshots(folder)]
        assert found == [(500, 0.05), (500, 0.1), (20_000, 1e-5), (10**13, 0.1)]
        assert not list(folder.glob(".*"))

    def test_saving_again_gives_the_same_bytes(self, tmp_path: Path) -> None:
        state = as_state(trajectory()[0])
        first = save_snapshot(tmp_path, 64, Rate("power", 0.1), state).read_bytes()
        assert save_snapshot(tmp_path, 64, Rate("power", 0.1), state).read_bytes() == first
        assert len(list(tmp_path.iterdir())) == 1

    def test_bad_input_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        state = {"w": torch.ones(1)}
        with pytest.raises(InputError, match="the average half-life-500 cannot be reconstructed from"):
            save_snapshot(tmp_path, 1, Rate("half-life", 500), state)
        for clock, content in ((0, state), (1, {})):
            with pytest.raises(InputError, match="at least one of both"):
                save_snapshot(tmp_path, clock, Rate("power", 0.1), content)
        assert not list(tmp_path.iterdir())

    def test_no_snapshots(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(InputError, match="holds no snapshots of power averages: train with some"):
                reconstruct(folder, 0.1)

    def test_what_the_snapshots_cannot_give(self, snapshots: Path) -> None:
        with pytest.raises(
            InputError, match=r"asked for at 128,001 images, must be above 0 and at most 128,000 \(the last snapshot"
        ):
            reconstruct(snapshots, 0.1, at=TOTAL + 1)
        with pytest.raises(
            InputError, match=r"sigma_rel 0.005 at 128,000 .* residual of 0.62, above the limit of 0.5: choose a width"
        ):
            reconstruct(snapshots, 0.005)
        with pytest.raises(InputError, match=r"is 0.4, must be a sigma_rel from"):
            reconstruct(snapshots, 0.4)
        with pytest.raises(InputError, match="above the limit"):  # long before the first one
            reconstruct(snapshots, 0.1, at=10 * BATCH)

    def test_a_rough_match_is_said_and_a_good_one_is_not(self, snapshots: Path) -> None:
        with pytest.warns(UserWarning, match="with a residual of 0.21; below 0.1 is good"):
            reconstruct(snapshots, 0.28)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert reconstruct(snapshots, 0.2)[1] < 0.03

    @staticmethod
    def _small(folder: Path, **last: torch.Tensor) -> Path:
        """Four snapshots; ``last`` is what the newest holds in place of the usual."""
        for clock in (1, 2):
            for width in TRACKED:
                newest = clock == 2 and width == TRACKED[-1]
                state = last if newest and last else {"a": torch.ones(40), "b": torch.ones(2, 2)}
                path = save_snapshot(folder, clock, Rate("power", width), state)
        return path

    def test_damage_is_found(self, tmp_path: Path) -> None:
        path = self._small(tmp_path)
        whole = path.read_bytes()
        assert torch.equal(reconstruct(tmp_path, 0.07)[0]["a"], torch.ones(40))
        path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        with pytest.raises(ModelFileError, match=r"power-0.1.safetensors is damaged: . does not match its checksum"):
            reconstruct(tmp_path, 0.07)
        for content in (whole[:-1], whole[:100], b""):
            path.write_bytes(content)
            with pytest.raises(ModelFileError, match=r"power-0.1.safetensors cannot be read"):
                reconstruct(tmp_path, 0.07)

    def test_a_renamed_file_is_found(self, tmp_path: Path) -> None:
        self._small(tmp_path).rename(tmp_path / "snapshot-000000000002-power-0.11.safetensors")
        with pytest.raises(ModelFileError, match="was renamed"):
            reconstruct(tmp_path, 0.07)

    @pytest.mark.parametrize(
        ("last", "message"),
        [
            ({"a": torch.ones(40)}, "does not hold the same tensors"),
            ({"a": torch.ones(40), "b": torch.ones(2, 2), "c": torch.ones(1)}, "does not hold the same tensors"),
            ({"a": torch.ones(40), "b": torch.ones(4)}, "b has another shape or type"),
            ({"a": torch.ones(40), "b": torch.ones(2, 2).half()}, "b has another shape or type"),
        ],
    )
    def test_snapshots_of_two_networks_are_refused(self, tmp_path: Path, last: dict[str, torch.Tensor], message: str) -> None:
        self._small(tmp_path, **last)
        with pytest.raises(ModelFileError, match=message):
            reconstruct(tmp_path, 0.07)


class TestDue:
    def test_sixteen_of_two_thousand_steps(self) -> None:
        due = [step for step in range(STEPS + 1) if snapshot_due(step * BATCH, batch=BATCH, total=TOTAL, count=COUNT)]
        assert due == [125 * (i + 1) for i in range(16)]

    @given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 63), st.integers(0, 400))
    def test_evenly_to_the_end(self, steps: int, batch: int, rest: int, count: int) -> None:
        total = steps * batch + rest % batch  # what is left of the budget is no step
        due = [step for step in range(steps + 3) if snapshot_due(step * batch, batch=batch, total=total, count=count)]
        assert len(due) == min(count, steps)
        if count:
            assert due[-1] == steps
            gaps = np.diff([0, *due])
            assert gaps.max() - gaps.min() <= 1

    @pytest.mark.parametrize("changes", [{"batch": 0}, {"total": 3}, {"count": -1}])
    def test_bad_input(self, changes: dict[str, int]) -> None:
        with pytest.raises(InputError, match="must be at least 1, at least a batch and at least 0"):
            snapshot_due(4, **{"batch": 4, "total": 8, "count": 2} | changes)
