"""Trains the small model of the Learn tab: ``python -m atonce.studio.learn_train``, two minutes on one core.

iCT on the plane with this package's own parts: the doubling curriculum, the log-normal choice of intervals, pairs under the
same noise, the pseudo-Huber distance and the weight 1 / (t - r) (Song and Dhariwal, 2023).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from safetensors.torch import save_file

from atonce.core import streams
from atonce.core.files import write_atomic, write_json
from atonce.core.progress import Progress
from atonce.noise.curricula import half_life_to_decay, n_ict
from atonce.noise.draws import draw_intervals, lognormal_interval_pmf
from atonce.objectives.discrete import discrete, same_noise
from atonce.objectives.distances import huber_constant, pseudo_huber
from atonce.objectives.weights import inverse_delta
from atonce.studio.learn_net import RECORD, WEIGHTS, PlaneNetwork, answer
from atonce.studio.learn_world import P_MEAN, P_STD, SIGMA_MAX, SIGMA_MIN, noise_levels, world

BATCH, STEPS, RATE, SEED = 512, 16_000, 1e-3, 1
_TESTED, _TEST_SEED = 4000, 11


def train(steps: int = STEPS, batch: int = BATCH, seed: int = SEED, quiet: bool = False) -> PlaneNetwork:
    """Train the model.

    Args:
        steps: Optimiser steps.
        batch: Points a step.
        seed: Of the weights, the data and the noise.
        quiet: Show no progress.

    Returns:
        The moving average of the weights (half-life: a fortieth of the run).
    """
    network = PlaneNetwork(torch.Generator().manual_seed(seed))
    average = copy.deepcopy(network)
    decay = half_life_to_decay(batch, steps * batch / 40)
    optimiser = torch.optim.RAdam(network.parameters(), lr=RATE)
    mixture, points = world(), 0
    with Progress("training", steps, "steps", quiet=quiet) as bar:
        for step in range(steps):
            if (now := n_ict(step, steps)) != points:
                points, grid = now, noise_levels(now)
                pmf = lognormal_interval_pmf(grid, P_MEAN, P_STD)
            for group in optimiser.param_groups:  # constant for half of the run, then down to a twentieth
                group["lr"] = RATE * min(1.0, 2.0 * (1.0 - step / steps) + 0.05)
            index = torch.arange(step * batch, (step + 1) * batch)
            y = mixture.sample(batch, seed, first=step * batch).float()
            z = streams.normal(seed, index, (2,), streams.Stream.NOISE).float()
            i = draw_intervals(streams.uniform(seed, index, 1, streams.Stream.SIGMA)[:, 0], pmf)
            t, r = grid[i + 1].float(), grid[i].float()

            def f(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
                return answer(network, x, sigma)

            terms = discrete(f, f, y, z, t, r, path=same_noise, distance=pseudo_huber, weight=inverse_delta(t, r))
            optimiser.zero_grad()
            terms.loss.mean().backward()
            optimiser.step()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - min(decay, (1 + step) / (10 + step)))
            if step % 100 == 0:
                bar.update(step, f"N = {points}, loss {float(terms.loss.detach().mean()):.4f}")
        bar.update(steps)
    return average


def measured(network: PlaneNetwork, n: int = _TESTED) -> dict[str, Any]:
    """How far the model's one-step answers are from the exact ones.

    Args:
        network: F, in float64.
        n: Starting points at the largest noise level.

    Returns:
        Root mean square and median distance to the exact origin, for each of some noise levels; the same of the answer of
        somebody who ignores the noise (the world's mean), as a measure.
    """
    mixture, levels = world(), (0.05, 0.2, 0.5, 1.0, 5.0, SIGMA_MAX)
    y = mixture.sample(n, _TEST_SEED)
    z = streams.normal(_TEST_SEED, torch.arange(n), (2,), streams.Stream.EVALUATE).double()
    x = torch.cat([y + sigma * z for sigma in levels])
    sigmas = torch.tensor(levels, dtype=torch.float64).repeat_interleave(n)
    exact = mixture.consistency(x, sigmas, SIGMA_MIN)
    with torch.no_grad():
        given = answer(network, x, sigmas)
    found = {}
    for sigma, theirs, ours in zip(levels, exact.split(n), given.split(n), strict=True):
        distance, plain = (ours - theirs).norm(dim=1), (theirs - theirs.mean(0)).norm(dim=1)
        found[f"{sigma:g}"] = {
            "rms": round(float(distance.square().mean().sqrt()), 4),
            "median": round(float(distance.median()), 4),
            "rms_of_the_mean": round(float(plain.square().mean().sqrt()), 4),
        }
    return found


def main() -> None:
    """Train, measure, and write the weights and their record beside the page's other files."""
    torch.set_num_threads(1)
    network = train()
    write_atomic(WEIGHTS, lambda path: save_file(network.state_dict(), path))
    write_json(
        RECORD,
        {
            "method": "iCT (Song and Dhariwal, 2023)",
            "made_by": "python -m atonce.studio.learn_train",
            "batch": BATCH,
            "points_seen": BATCH * STEPS,
            "steps": STEPS,
            "rate": RATE,
            "seed": SEED,
            "c": huber_constant(2),
            "parameters": sum(each.numel() for each in network.parameters()),
            "distance_to_exact": measured(network.double(), _TESTED),
            "measured_on": _TESTED,
        },
    )


if __name__ == "__main__":
    main()
