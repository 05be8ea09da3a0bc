"""What each further step is worth: how much it changes the images, and whether it brings them nearer to the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.core.records import Metric
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import BLOCKS, FeatureStatistics, Moments, frechet_gain, frechet_metric
from atonce.evaluation.gather import gather
from atonce.evaluation.resampling import mean_metric
from atonce.evaluation.rows import every_row

Floats = Callable[[int, int, int], Tensor]
"""Of (first, count, steps): samples float [count, C, H, W] in [-1, 1], made from the same noise whatever the steps."""


def step_changes(floats: Floats, steps: int, n: int, *, batch: int = 64, sharded: bool = False) -> Tensor:
    """Root mean square change over the pixels of each image, from k - 1 to k steps with the same noise.

    Args:
        floats: Makes samples.
        steps: The most steps, at least 2.
        n: Number of images.
        batch: Images at once.
        sharded: Whether the processes of the group share the work.

    Returns:
        float64 [n, steps - 1].

    Raises:
        InputError: There are fewer than 2 steps.
    """
    if steps < 2:
        raise InputError(f"the gain from step to step needs at least 2 steps, got {steps}")

    def rows(first: int, count: int) -> Tensor:
        made = [floats(first, count, k).to(torch.float64).flatten(1) for k in range(1, steps + 1)]
        return torch.stack([(b - a).square().mean(1).sqrt() for a, b in zip(made, made[1:])], 1)

    return every_row(n, steps - 1, rows, batch=batch, sharded=sharded)


def step_gain(
    floats: Floats,
    steps: int,
    n: int,
    extractor: Extractor,
    reference: Moments,
    *,
    probes: int = 256,
    batch: int = 64,
    seed: int = 0,
    sharded: bool = False,
    device: torch.device | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, Metric]:
    """Fréchet distance at 1 to k steps with shared noise, the gain of each further step, and how much it changes the images.

    For k = 2 and up: ``step_frechet:k`` with the interval of every Fréchet distance; ``step_gain:k``, by how much k steps are
    nearer to the reference than k - 1, with the interval of the difference (:func:`~atonce.evaluation.frechet.frechet_gain`:
    the shared noise cancels); ``step_change:k``, the mean over the first images of the root mean square change of their pixels,
    percentile bootstrap. A step that changes the images without a gain is wasted: 0 lies in the interval of its gain.

    Args:
        floats: Makes samples.
        steps: The most steps, at least 2.
        n: Samples for the distances.
        extractor: Turns them into features.
        reference: What they are compared with.
        probes: Images of which the change is measured, at most.
        batch: Images at once.
        seed: Of the resampling.
        sharded: Whether the processes of the group share the work.
        device: Where the extractor works.
        callback: Told (done, total) samples of this process, over all numbers of steps.

    Returns:
        The metrics by name.
    """
    few = min(n, probes)
    changes = step_changes(floats, steps, few, batch=batch, sharded=sharded)
    blocks: list[tuple[FeatureStatistics, ...]] = []
    for k in range(1, steps + 1):
        make = lambda first, count, k=k: to_uint8(floats(first, count, k))
        told = None if callback is None else lambda done, total, k=k: callback((k - 1) * total + done, steps * total)
        parts = gather(make, n, extractor, batch=batch, blocks=BLOCKS, sharded=sharded, device=device, callback=told).blocks
        blocks.append(parts)
    out = {"step_frechet:1": frechet_metric(blocks[0], reference)}
    for k in range(2, steps + 1):
        words = f"from {k - 1} to {k} steps, same noise"
        out[f"step_frechet:{k}"] = frechet_metric(blocks[k - 1], reference)
        out[f"step_gain:{k}"] = frechet_gain(blocks[k - 2], blocks[k - 1], reference, words)
        out[f"step_change:{k}"] = mean_metric(changes[:, k - 2], seed, 12 + k, words, "rms per pixel", None, few)
    return out
