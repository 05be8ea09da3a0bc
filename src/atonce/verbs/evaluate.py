"""The verb ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional

import atonce
from atonce.core.errors import ModelFileError
from atonce.verbs.output import show


def evaluate(
    model: Positional[str],
    data: str = "digits",
    steps: int = 1,
    n: int = 2000,
    metrics: tuple[str, ...] = ("frechet", "kid", "precision_recall"),
    extractor: str = "auto",
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Measure a model, or a folder of images, against data.

    Example: atonce eval digits --data digits --n 1000

    Args:
        model: Gallery name, run folder, model folder, hub id, or a folder of images.
        data: Name, or a folder, zip or file of images.
        steps: Intervals of the sampler.
        n: Number of samples.
        metrics: Names of metrics.
        extractor: What turns images into features.
        seed: Seed of the samples.
        out: File for the record (JSON).
        json: Print the record as JSON.

    Returns:
        The exit status.

    Raises:
        ModelFileError: There is no such model.
    """
    subject: Any = model
    try:
        subject = atonce.load(model)
    except ModelFileError:
        if not Path(model).is_dir() or (Path(model) / "config.json").exists():
            raise
    record = atonce.evaluate(subject, data, steps=steps, n=n, metrics=metrics, extractor=extractor, seed=seed)
    if out is not None:
        record.save(out)
    lines = []
    for name, metric in record.metrics.items():
        interval = f"  ({metric.interval[0]:.5g} to {metric.interval[1]:.5g})" if metric.interval else ""
        lines.append(f"{name}: {metric.value:.5g}{interval}")
    show(record.as_dict(), "\n".join([*lines, *record.notes]), json)
    return 0
