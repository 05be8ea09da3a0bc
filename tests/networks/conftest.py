"""Names and shapes of the tensors in public checkpoints, kept in layouts/ (nothing else of those files is there)."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def layout() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Reads a layout by name, as shapes by tensor name in the order of the file."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        text = gzip.decompress(Path(__file__).with_name("layouts").joinpath(f"{name}.tsv.gz").read_bytes()).decode()
        return {key: tuple(map(int, shape.split("x"))) for key, shape in (line.split("\t") for line in text.splitlines())}

    return read
