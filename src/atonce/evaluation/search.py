"""Time points of a model, searched by the quality of its samples, and kept in its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.core.records import Metric, Source, make_record
from atonce.data.dataset import ImageData
from atonce.data.limits import check_memory
from atonce.evaluation.cache import reference_features, reference_moments
from atonce.evaluation.classifier import LARGEST, SMALLEST
from atonce.evaluation.extractors import Extractor, mark_seen, open_extractor, seen_digests
from atonce.evaluation.frechet import BLOCKS, frechet_gain, frechet_metric
from atonce.evaluation.gather import Gathered, gather
from atonce.evaluation.kernel import kernel_metric, squared_mmd, subset
from atonce.evaluation.reference import Reference, data_source, open_images
from atonce.evaluation.samples import Sampling, open_samples
from atonce.evaluation.shared_noise import SharedNoise, check_room
from atonce.evaluation.time_points import Ledger, Point, TimeSearch
from atonce.evaluation.time_points import store_times as store_times
from atonce.evaluation.time_points import with_times as with_times
from atonce.model import ConsistencyModel
from atonce.model_files import weights_digest
from atonce.noise.karras import karras_grid
from atonce.sampling import search
from atonce.sampling.search import Evaluation, Times
from atonce.sampling.times import restart_times

Method = Literal["golden", "ternary", "coordinate", "scan"]
Judge = Callable[[Tensor], float]

FEWEST = {"frechet": 2 * BLOCKS, "kid": 4}
POINTS = {"golden": 100, "coordinate": 100, "scan": 40, "ternary": 40}  # of the grid, where it is not given
LARGEST_SCAN = 10_000


def search_times(
    model: ConsistencyModel,
    data: str | Path | ImageData = "digits",
    steps: int = 2,
    *,
    method: Method = "golden",
    metric: str | Judge = "frechet",
    extractor: str | Extractor = "auto",
    n: int = 2000,
    seed: int = 0,
    grid: int | Sequence[float] | None = None,
    labels: Any = None,
    guidance: float | None = None,
    batch: int | None = None,
    ledger: Path | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> TimeSearch:
    """Find the time points at which a model's samples are best.

    All choices are measured with the same noise and labels, so that their difference is that of the time points; the
    reference is computed once, and steps that choices share are computed once (see :class:`SharedNoise`). The lowest of many
    values flatters, so the gain over the present time points is measured once more, with other noise.

    Args:
        model: A consistency model or a flow map.
        data: What the samples are to be like: a name, a path or data in memory.
        steps: Intervals of the sampler, at least 2; the first begins at ``sigma_max``.
        method: ``"golden"``, ``"ternary"`` (greedy, as published), ``"coordinate"`` (from the present time points) or
            ``"scan"``; see :mod:`atonce.sampling.search`.
        metric: ``"frechet"``, ``"kid"``, or a function of images uint8 [n, C, H, W] that is lower where they are better.
        extractor: As for evaluation; ``"auto"`` takes pixels for digits and the classifier of other labelled data.
        n: Samples of each choice.
        seed: Of their noise; that of the gain is ``seed ^ 1``.
        grid: Noise levels to choose from, or how many; default: evenly spaced in ln sigma from 0.2 to 40 sigma_data, for
            ``"ternary"`` the inner points of the Karras grid of 40.
        labels: Given to the model: one label, one for each sample, or ``"balanced"``.
        guidance: Scale of guidance.
        batch: Images at once; changes speed only.
        ledger: File in which each value is kept as soon as it is there; the same call continues from it.
        callback: Told of each choice: ``evaluation`` (a number from 1), ``expected`` (about how many there will be),
            ``sigmas``, ``value``, ``interval``.

    Returns:
        The best choice with everything that was seen.

    Raises:
        InputError: The model, data, metric, extractor, grid or a number cannot be used; said before any sample is made.
        DataError: The ledger belongs to another search or is damaged, or so many samples do not fit into the memory.
    """
    if model.kind == "denoiser":
        raise InputError("time points are searched for models that restart, this is a denoiser: its solvers use a Karras grid")
    if method not in get_args(Method):
        raise InputError(f"search method {method!r} is not known; known: {', '.join(get_args(Method))}")
    if isinstance(metric, str) and metric not in FEWEST:
        raise InputError(f"metric {metric!r} cannot be searched by; possible: {', '.join(FEWEST)}, or a function of images")
    fewest = FEWEST[metric] if isinstance(metric, str) else 1
    if not isinstance(n, int) or n < fewest:
        raise InputError(f"n is {n!r}: metric {metric} needs at least {fewest} samples")
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}, must be at least 1")
    levels = search_grid(model, POINTS[method] if grid is None else grid, method)
    if method == "scan" and math.comb(len(levels), max(0, steps - 1)) > LARGEST_SCAN:
        count = math.comb(len(levels), steps - 1)
        raise InputError(f"a scan of {len(levels)} levels at {steps} steps has {count:,} choices, at most {LARGEST_SCAN:,} do")
    present = tuple(model.config.time_points.get(steps) or restart_times(steps, model.sigma_max, model.sigma_data))
    # Everything that can be refused is refused by a search over a made-up metric, which also says about how many there will be.
    expected = _search(method, _made_up(levels), present, levels, steps).evaluations
    real = open_images(data)
    check_room(n, model.shape, sets=2)  # those of the gain
    sampling = Sampling(steps, seed, batch, labels, guidance, present)
    source = open_samples(model, n, real, sampling)  # checks them, and knows the words of the record
    samples = SharedNoise(model, n, seed, labels=source.asked, guidance=guidance, batch=batch)
    judge = _measure(metric, extractor, real, model, seed, n)
    weights = weights_digest(model)
    settings = {
        "weights": weights,
        "data": real.digest(),
        "metric": judge.name,
        "extractor": judge.source.digest,
        "n": n,
        "seed": seed,
        "labels": None if labels is None or samples.labels is None else samples.labels.tolist(),
        "guidance": guidance,
    }
    kept = Ledger(ledger, settings)
    metrics = kept.metrics
    number = measured = 0

    def value(sigmas: Times) -> float:
        nonlocal measured
        if sigmas not in metrics:
            kept.add(sigmas, judge.value(samples.images(sigmas)))
            measured += 1
        return metrics[sigmas].value

    def seen(evaluation: Evaluation) -> None:
        nonlocal number
        number += 1
        if callback is not None:
            facts = {"sigmas": evaluation.sigmas, "value": evaluation.value, "interval": metrics[evaluation.sigmas].interval}
            callback({"evaluation": number, "expected": max(expected, number), **facts})

    best = _search(method, value, present, levels, steps, seen)
    value(present)
    gain, calls = None, samples.calls
    if judge.gain is not None and metrics[best.sigmas].value < metrics[present].value:
        chosen = None if labels is None else source.asked  # where the model draws them they are other ones too
        other = SharedNoise(model, n, seed ^ 1, labels=chosen, guidance=guidance, batch=batch)
        gain = judge.gain(other.images(present), other.images(best.sigmas))
        calls += other.calls
    source.sampling, source.calls = dataclasses.replace(sampling, sigmas=best.sigmas), steps * samples.each
    shown = ", ".join(f"{sigma:.6g}" for sigma in best.sigmas)
    record = make_record(
        {judge.name: metrics[best.sigmas]},
        device=source.device,
        extractor=judge.source,
        reference=data_source(real),
        data=data_source(real),
        samples=n,
        notes=(f"time points {shown}: the best of {best.evaluations} choices that a {method} search measured",),
        **source.conditions(),
    )
    result = TimeSearch(
        steps=steps,
        method=method,
        name=judge.name,
        found=Point(best.sigmas, metrics[best.sigmas]),
        before=Point(present, metrics[present]),
        curve=tuple(Point(e.sigmas, metrics[e.sigmas]) for e in best.curve),
        record=record,
        weights=weights,
        gain=gain,
        gain_seed=None if gain is None else seed ^ 1,
        calls=calls,
        measured=measured,
    )
    kept.finish(result)
    return result


def search_grid(model: ConsistencyModel, grid: int | Sequence[float], method: Method = "golden") -> list[float]:
    """The noise levels that a search chooses from.

    Args:
        model: The model.
        grid: The levels themselves, or how many.
        method: ``"ternary"`` counts the points of a Karras grid with its ends, which are no choice; the others take levels
            evenly spaced in ln sigma from 0.2 to 40 sigma_data, as far as the model goes.

    Returns:
        Noise levels inside (sigma_end, sigma_max).

    Raises:
        InputError: There are too few, or one lies outside.
    """
    if not isinstance(grid, int):
        levels = [float(sigma) for sigma in grid]
        if not levels or not all(model.sigma_end < sigma < model.sigma_max for sigma in levels):
            limits = f"{model.sigma_end:g} and {model.sigma_max:g}"
            raise InputError(
                f"the grid {levels[:8]} must hold noise levels between {limits}, where the model's steps may begin"
            )
        return levels
    if grid < 3:
        raise InputError(f"grid is {grid}, a search needs at least 3 noise levels to choose from")
    if method == "ternary":
        return [float(sigma) for sigma in karras_grid(grid, model.sigma_min, model.sigma_max)[1:-1]]
    high = min(40 * model.sigma_data, model.sigma_max / 2)
    low = min(max(0.2 * model.sigma_data, 2 * model.sigma_end), high / 2)
    return [low * (high / low) ** (i / (grid - 1)) for i in range(grid)]


def search_extractor(name: str | Extractor, data: ImageData) -> Extractor:
    """The extractor of a name; ``"auto"`` is pixels for the digits and the classifier of other labelled data of its size."""
    fits = data.labels is not None and all(SMALLEST <= side <= LARGEST for side in data.shape[1:])
    wanted = "classifier" if name == "auto" and data.name != "digits" and fits else name
    return open_extractor(wanted, data.shape, data)


def _search(
    method: Method,
    metric: search.Metric,
    present: Times,
    levels: Sequence[float],
    steps: int,
    callback: Callable[[Evaluation], None] | None = None,
) -> search.Found:
    match method:
        case "coordinate":
            return search.coordinate(metric, present, levels, callback=callback)
        case "ternary":
            return search.ternary(metric, present[0], levels, steps, callback=callback)
        case "scan":
            return search.scan(metric, present[0], levels, steps, callback=callback)
        case _:
            return search.golden(metric, present[0], levels, steps, start=present, callback=callback)


def _made_up(levels: Sequence[float]) -> search.Metric:
    """A metric with one valley, in the middle of the levels for two steps and evenly below each other for more."""
    low, high = math.log(min(levels)), math.log(max(levels))

    def metric(sigmas: Times) -> float:
        k = len(sigmas)
        return sum((math.log(s) - high + (high - low) * j / k) ** 2 for j, s in enumerate(sigmas) if j)

    return metric


@dataclasses.dataclass(frozen=True)
class _Measure:
    """What turns images into a metric, what a record says of it, and what compares two sets of images from the same noise."""

    name: str
    source: Source
    value: Callable[[Tensor], Metric]
    gain: Callable[[Tensor, Tensor], Metric] | None = None


def _measure(
    metric: str | Judge, extractor: str | Extractor, real: ImageData, model: ConsistencyModel, seed: int, n: int
) -> _Measure:
    if not isinstance(metric, str):
        name, called = getattr(metric, "__qualname__", type(metric).__qualname__), metric
        source = Source(f"function {name}", sha256_json({"function": name}))
        return _Measure(name, source, lambda images: Metric(float(called(images))))
    features = mark_seen(search_extractor(extractor, real), seen_digests(model.card))
    if features.seen_in_training:
        raise InputError(f"training has seen the extractor {features.name}, so nothing is chosen by it: take another one")
    size = max(1, min(1024, (1 << 22) // math.prod(real.shape)))
    reference = Reference(data_source(real), real.images)

    def gathered(images: Tensor, **kept: Any) -> Gathered:
        return gather(lambda first, count: images[first : first + count], len(images), features, batch=size, **kept)

    if metric == "frechet":
        moments = reference_moments(reference, features, batch=size)
        return _Measure(
            metric,
            features.source(),
            lambda images: frechet_metric(gathered(images, blocks=BLOCKS).blocks, moments),
            lambda before, after: frechet_gain(
                gathered(before, blocks=BLOCKS).blocks, gathered(after, blocks=BLOCKS).blocks, moments
            ),
        )
    check_memory(16 * n * features.dimension, f"{features.dimension:,} features of {n:,} samples, twice", "give a smaller n")
    theirs = reference_features(reference, features, batch=size)

    def found(images: Tensor) -> Tensor:
        ours = gathered(images, keep_features=True).features
        assert ours is not None
        return ours

    return _Measure(
        metric,
        features.source(),
        lambda images: kernel_metric(found(images), theirs, seed=seed),
        lambda before, after: kernel_gain(found(before), found(after), theirs, seed=seed),
    )


def kernel_gain(
    before: Tensor, after: Tensor, theirs: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Metric:
    """By how much the kernel distance falls, with the interval of the difference.

    As :func:`~atonce.evaluation.kernel.kernel_metric`, of the difference of both distances on each subset: the subsets take the
    same sample numbers of both sides, so what is due to noise that both share cancels.

    Args:
        before: Features of one set of samples [n, D].
        after: Of the other, from the same noise row by row.
        theirs: Features of the reference [m, D].
        subsets: Number of subsets.
        size: Items in each; halved sets where n or m has fewer than twice as many.
        seed: Of the choice of subsets.

    Returns:
        The metric; above 0 where ``after`` is better.
    """
    smaller = min(len(before), len(theirs))
    size = min(size, smaller // 2)
    values = []
    for index in range(subsets):
        one, y = subset(len(before), size, seed, index, 0), theirs[subset(len(theirs), size, seed, index, 1)]
        values.append(squared_mmd(before[one], y) - squared_mmd(after[one], y))
    value = math.fsum(values) / subsets
    spread = math.fsum((v - value) ** 2 for v in values) / (subsets - 1)
    half = 1.96 * math.sqrt(spread * (size / (smaller - size) + 1.0 / subsets))
    settings = f"cubic kernel, {subsets} subsets of {size}"
    return Metric(value, (value - half, value + half), higher_is_better=True, unit="squared MMD", settings=settings)
