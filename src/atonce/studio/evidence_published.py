"""Published numbers, with where they can be read. They are facts of others: nothing here was measured by us."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

PUBLISHED, MEASURED = "published", "measured"


@dataclass(frozen=True)
class Published:
    """A line of a published table.

    Attributes:
        table: The table.
        method: The method, as its paper calls it.
        ours: The preset of ours that is the same method; empty where there is none.
        calls: Network calls for each image.
        fid: The Fréchet Inception distance.
        source: Where it can be read.
        note: What must be known beside it.
    """

    table: str
    method: str
    ours: str
    calls: int
    fid: float
    source: str
    note: str


@functools.cache
def published() -> tuple[Published, ...]:
    """All published numbers that are quoted."""
    values = _file()
    return tuple(
        Published(
            table=table["name"],
            method=row["method"],
            ours=row.get("ours", ""),
            calls=row["calls"],
            fid=row["fid"],
            source=values["sources"][row["source"]],
            note=row.get("note", ""),
        )
        for table in values["tables"]
        for row in table["rows"]
    )


def published_about() -> tuple[str, str]:
    """What the numbers are, and what is not known."""
    values = _file()
    return values["about"], values["unknown"]


@functools.cache
def _file() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(
        importlib.resources.files("atonce.studio").joinpath("evidence_published.json").read_text("utf-8")
    )
    return values
