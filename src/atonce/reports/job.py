"""Which images are wanted of a model: checked before any work is done, and put down so that only equal wishes are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.core.version import VERSION
from atonce.model import ConsistencyModel
from atonce.model_config import Sampler, checked_labels, drawn_labels, guidance_scale
from atonce.model_files import config_to_dict, model_identity
from atonce.sampling.ode import Churn

MOST = 100_000_000  # images of one command; their labels and cells are kept in memory


@dataclass(frozen=True)
class Job:
    """Which images are wanted; the fields are those of :meth:`atonce.model.ConsistencyModel.sample`.

    Attributes:
        n: Number of images.
        first: Index of the first image.
        seed: Seed of the noise and of labels that are not given.
        seeds: One seed for each image, instead.
        labels: Class of all images, or of each; a conditional model draws them when not given.
        steps: Intervals.
        sigmas: Starting noise levels, instead.
        sampler: Name of the sampler.
        guidance: Scale of guidance.
        ema: Name of a set of weights.
        batch: Images computed together; default 256 on a GPU, 64 elsewhere.
        churn: Fresh noise that the solver of a denoiser adds.
    """

    n: int
    first: int = 0
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    steps: int = 1
    sigmas: tuple[float, ...] | None = None
    sampler: Sampler = "auto"
    guidance: float | None = None
    ema: str | None = None
    batch: int | None = None
    churn: Churn | None = None


def checked(model: ConsistencyModel, job: Job) -> Tensor | None:
    """Check all that can be wrong with a job, and find the classes of its images.

    Args:
        model: The model.
        job: What is wanted of it.

    Returns:
        The classes, int64 [n]; ``None`` for an unconditional model.

    Raises:
        InputError: A field is out of range, or the model cannot honour it.
    """
    if not 1 <= job.n <= MOST:
        raise InputError(f"n is {job.n:,}, must be from 1 to {MOST:,}: make more in several commands, with first")
    if job.first < 0 or job.first + job.n > 1 << 62:
        raise InputError(f"first is {job.first}, must be from 0 to {(1 << 62) - job.n}")
    if job.batch is not None and job.batch < 1:
        raise InputError(f"batch is {job.batch}, must be at least 1")
    if job.seeds is not None:
        if len(job.seeds) != job.n:
            raise InputError(f"{len(job.seeds)} seeds are given for {job.n} images: give one for each")
        if wrong := [seed for seed in job.seeds if not -(1 << 63) <= seed < 1 << 63]:
            raise InputError(f"seed {wrong[0]} is out of range: seeds of single images have 64 bits")
    classes = model.config.network.labels
    labels = checked_labels(job.labels, job.n, classes)
    if labels is None and classes:
        keys: int | Tensor = job.seed if job.seeds is None else torch.tensor(job.seeds)
        index = torch.arange(job.first, job.first + job.n) if job.seeds is None else torch.zeros(job.n, dtype=torch.int64)
        labels = drawn_labels(keys, index, classes)
    guidance_scale(model.config.guidance, job.guidance, labels)
    others = {"sigmas": job.sigmas, "sampler": job.sampler, "ema": job.ema, "churn": job.churn}
    model.sample(0, job.steps, job.seed, **others)  # type: ignore[arg-type]  # checks them
    return labels


def facts_of_job(model: ConsistencyModel, job: Job, batch: int) -> dict[str, Any]:
    """All that decides about the bits of the images.

    Args:
        model: The model, where it will run.
        job: What is wanted of it.
        batch: Images computed together.

    Returns:
        JSON values; lists that may be long by their digest.
    """
    return {
        "model": model_identity(model),
        "config": sha256_json(config_to_dict(model.config))[:16],
        "ema": job.ema,
        "atonce": VERSION,
        "steps": job.steps,
        "sigmas": None if job.sigmas is None else [float(sigma) for sigma in job.sigmas],
        "sampler": job.sampler,
        "guidance": job.guidance,
        "churn": None if job.churn is None else str(job.churn),
        "batch": batch,
        "device": f"{model.device.type} {str(model.dtype).removeprefix('torch.')}",
        "seed": job.seed if job.seeds is None else None,
        "first": job.first,
        "n": job.n,
        "seeds": _named(job.seeds),
        "labels": job.labels[0] if job.labels is not None and len(job.labels) == 1 else _named(job.labels),
    }


def _named(values: Sequence[int] | None) -> str | None:
    """A list by its length and digest: it may be longer than what a file can carry."""
    return None if values is None else f"{len(values)} values, sha256 {sha256_json(list(values))[:16]}"
