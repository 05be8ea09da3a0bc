"""Records that can be drawn, from folders and files: evaluations, points of quality against cost, cells of tables of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atonce.core.errors import DataError
from atonce.core.records import Record
from atonce.planning.comparison import Row, rows_of_file

LARGEST = 8 << 20  # bytes of a file
MOST = 5000  # files


@dataclass(frozen=True)
class Cell:
    """A trained run of a table, measured.

    Attributes:
        table: Name of the table: ``ablation``, ``methods``.
        data: What it was trained on, as the table calls it.
        name: The line of the table.
        seed: Of the run.
        what: What the line is, for people.
        measured: By way of sampling: ``frechet``, ``interval``, ``confidence``, ``calls``, ...
        recipe: Fields of its recipe.
        extractor: Name of what turned images into features.
        digest: Of the extractor.
        seen: Whether the extractor took part in training.
        samples: How many images were measured.
        source: Its file.
    """

    table: str
    data: str
    name: str
    seed: int
    what: str
    measured: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    extractor: str
    digest: str
    seen: bool
    samples: int
    source: str


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        rows: Evaluations, with what they are called.
        cells: Runs of tables.
        places: Where was looked: the end of each place's path, and how many files of records it gave.
        problems: A line for each file that should hold records and cannot be read.
        others: How many JSON files hold something else.
    """

    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    places: tuple[tuple[str, int], ...]
    problems: tuple[str, ...]
    others: int


def gather(places: Sequence[Path], runs: Path | None = None, models: Sequence[tuple[str, Sequence[Record]]] = ()) -> Found:
    """All records of some places.

    Args:
        places: Folders and files.
        runs: Folder of runs, whose models may carry records.
        models: Names and records of models that are open.

    Returns:
        What was found. A file that cannot be read is named in ``problems`` and spoils nothing else.
    """
    rows: list[Row] = []
    cells: list[Cell] = []
    looked: list[tuple[str, int]] = []
    problems: list[str] = []
    others = 0
    for place in places:
        count = 0
        for file in _files(place):
            name = _name(file, place)
            try:
                new_rows, new_cells = read(file, name)
            except DataError as error:
                problems.append(" ".join(str(error).replace(str(file), name).split()))
                continue
            rows += new_rows
            cells += new_cells
            count += bool(new_rows or new_cells)
            others += not (new_rows or new_cells)
        looked.append(("/".join(place.parts[-2:]), count))
    if runs is not None:
        count = 0
        for file in _run_records(runs):
            name = _name(file, runs)
            try:
                found = _many(file, name.removesuffix("/model/records.json"))
            except DataError as error:
                problems.append(" ".join(str(error).replace(str(file), name).split()))
                continue
            rows += found
            count += bool(found)
        looked.append(("models of the runs", count))
    for name, records in models:
        rows += [Row(name, record) for record in records]
        looked.append((f"the model {name}", len(records)))
    return Found(tuple(rows), tuple(cells), tuple(looked), tuple(problems), others)


def read(file: Path, name: str) -> tuple[list[Row], list[Cell]]:
    """What one file holds.

    Args:
        file: The JSON file.
        name: What to call it.

    Returns:
        Rows and cells; neither where it holds something else.

    Raises:
        DataError: It cannot be read, or its records are damaged.
    """
    values = _json(file)
    if isinstance(values, list):
        return _many(file, name), []
    if not isinstance(values, dict):
        return [], []
    if isinstance(values.get("cell"), str) and isinstance(values.get("measured"), dict):
        return [], [_cell(values, file)]
    if {"format", "metrics"} <= values.keys():
        return [Row(file.stem, Record.load(file))], []
    points = values.get("points", values.get("measured"))
    if isinstance(points, list) and any(isinstance(point, dict) and "record" in point for point in points):
        return rows_of_file(file), []
    return [], []


def _cell(values: dict[str, Any], file: Path) -> Cell:
    try:
        extractor = dict(values["extractor"])
        return Cell(
            table=file.parent.parent.name,
            data=file.parent.name,
            name=values["cell"],
            seed=int(values["seed"]),
            what=str(values.get("what", values["cell"])),
            measured={str(way): {**found, "frechet": float(found["frechet"])} for way, found in values["measured"].items()},
            recipe=dict(values.get("recipe") or {}),
            extractor=str(extractor["name"]),
            digest=str(extractor["digest"]),
            seen=bool(extractor.get("seen_in_training", False)),
            samples=int(values["samples"]),
            source=file.name,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} holds a run of a table that cannot be read ({error!r}): measure it again") from error


def _many(file: Path, name: str) -> list[Row]:
    """The records of a model's file; other lists hold none."""
    values = _json(file)
    if not isinstance(values, list) or not all(isinstance(each, dict) and "metrics" in each for each in values):
        return []
    try:
        return [Row(name, Record.from_dict(each)) for each in values]
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > LARGEST:
            raise DataError(f"{file} has {file.stat().st_size:,} bytes, at most {LARGEST:,} are read")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    number = 0
    for folder, inner, names in os.walk(place):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json") and not name.startswith("."):
                number += 1
                if number > MOST:
                    return
                yield Path(folder) / name


def _run_records(runs: Path, depth: int = 4) -> list[Path]:
    """Records of the models of runs."""
    patterns = ["/".join(["*"] * level) + "/model/records.json" for level in range(1, depth + 1)]
    return [file for pattern in patterns for file in sorted(runs.glob(pattern))][:MOST] if runs.is_dir() else []


def _name(file: Path, place: Path) -> str:
    return file.name if file == place else file.relative_to(place).as_posix()
