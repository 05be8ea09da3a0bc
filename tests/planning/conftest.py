"""Measurements made up for tests, in round numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from atonce.planning.measure import Measurement

MIB = 2**20


def made_up(**changes: Any) -> Measurement:
    """Steps of 0.1 + 0.01 s an image, 300 MiB + 1 MiB an image; everything else round and small."""
    base = Measurement(
        batches=(10, 90),
        steps=(0.2, 1.0),
        quartiles=(0.98, 1.02),
        memory=(310 * MIB, 390 * MIB),
        device_memory=(0, 0),
        floor=250 * MIB,
        startup=3.0,
        evaluation=2.0,
        sample=0.001,
        calls=1,
        checkpoint=0.5,
        save=0.25,
        log=0.01,
        checkpoint_bytes=10 * MIB,
        model_bytes=MIB,
        picture_bytes=1000,
        line_bytes=500.0,
        parameters=1000,
        precision="float32",
        tensorboard=True,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="session")
def measurement() -> Callable[..., Measurement]:
    """The function that makes them."""
    return made_up
