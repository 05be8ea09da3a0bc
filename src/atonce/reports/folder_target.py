"""A folder of generated images: filled in place, by one command or by several that each make a part of one set.

Its settings are in ``.atonce.json``; images are named by their index and appear whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from torch import Tensor

from atonce.core.errors import InputError, StorageError
from atonce.core.files import storage_errors, sync_folder, write_bytes, write_json
from atonce.reports.begun import Cell, Facts, differences, lock, only, read_manifest
from atonce.reports.outputs import dataset_json, picture, picture_name
from atonce.reports.pictures import is_ours

_HALF_PICTURE = re.compile(r"\.(\d{6,})\.png\.tmp")
_HALF_LIST = re.compile(r"\.(\.atonce|dataset)\.json\..*\.tmp")
_OF_A_SHARD = ("first", "n", "seeds", "labels")  # commands that fill one folder together may differ in these


@dataclass(frozen=True)
class FolderTarget:
    """A folder of PNGs named by the index of the image, and ``dataset.json`` where images have classes.

    Attributes:
        out: The folder.
    """

    out: Path

    def prepare(self, facts: Facts, labels: Tensor | None, held: contextlib.ExitStack) -> bool:
        """Check what is there and begin, continue, or add a further part of the set.

        Args:
            facts: What is to be made.
            labels: Classes of the images, int64 [n].
            held: Not used: several processes may fill one folder.

        Returns:
            False: what is there is found out image by image.

        Raises:
            InputError: Something else is in the way.
            StorageError: The folder cannot be written.
        """
        first, n = facts["first"], facts["n"]
        with storage_errors(self.out):
            if self.out.exists() and not self.out.is_dir():
                raise InputError(f"{self.out} exists and is no folder: choose another name, nothing was changed")
            self.out.mkdir(parents=True, exist_ok=True)
            with lock(self.out, wait=True):
                there = read_manifest(self.out / ".atonce.json")
                if there is None:
                    only(self.out, _HALF_LIST.fullmatch)
                    there = {key: value for key, value in facts.items() if key not in _OF_A_SHARD} | {"shards": []}
                self._check(there, facts)
                for name in os.listdir(self.out):  # what a kill left: lists are only written under the lock
                    half = _HALF_PICTURE.fullmatch(name)
                    if _HALF_LIST.fullmatch(name) or (half and first <= int(half[1]) < first + n):
                        (self.out / name).unlink()
                shard = {key: facts[key] for key in _OF_A_SHARD}
                if shard not in there["shards"]:
                    write_json(self.out / ".atonce.json", {**there, "shards": [*there["shards"], shard]})
                if labels is not None:
                    self._note_labels(first, labels)
        return False

    def _check(self, there: Facts, facts: Facts) -> None:
        """Refuse settings that differ, other images under the same names, and files that are not ours.

        Raises:
            InputError: One of these.
        """
        first, n = facts["first"], facts["n"]
        differs = differences(there, facts, leave_out=_OF_A_SHARD)
        for shard in there["shards"]:
            if shard["first"] < first + n and first < shard["first"] + shard["n"]:
                lists = any(isinstance(shard[key], str) for key in ("seeds", "labels"))
                same = ("first", "n") if not lists else ()  # lists belong to the very images they were given for
                differs = differs or differences(shard, {key: facts[key] for key in _OF_A_SHARD}, leave_out=same)
        if differs:
            raise InputError(
                f"{self.out} holds images made with other settings ({differs}): give the same ones, or choose another folder"
            )
        present = set(os.listdir(self.out))
        for name in map(picture_name, range(first, first + n)):
            if name in present and not is_ours(self.out / name):
                raise InputError(f"{self.out / name} exists and was not made by atonce: choose another folder")

    def _note_labels(self, first: int, labels: Tensor) -> None:
        file = self.out / "dataset.json"
        try:
            known = dict(json.loads(file.read_text())["labels"]) if file.exists() else {}
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise InputError(f"{file} cannot be read as our list of labels: delete it or choose another folder") from problem
        known = {name: -1 if label is None else label for name, label in known.items()}
        new = known | {picture_name(first + i): label for i, label in enumerate(labels.tolist())}
        if new != known:
            write_bytes(file, dataset_json(dict(sorted(new.items()))))

    def present(self, cells: Sequence[Cell]) -> list[bool]:
        """Which cells are there, whole."""
        names = set(os.listdir(self.out))
        return [all(picture_name(i) in names for i in range(cell.low, cell.high)) for cell in cells]

    def note_calls(self, calls: int) -> None:
        """Keep the number of network calls; every process does so before it writes its first image."""
        with storage_errors(self.out), lock(self.out, wait=True):
            there = read_manifest(self.out / ".atonce.json")
            if there is not None and there.get("calls") != calls:
                write_json(self.out / ".atonce.json", {**there, "calls": calls})

    def write(self, cell: Cell, images: Tensor) -> None:
        """Keep the images uint8 [k, C, H, W] of a cell."""
        _write_durably(self.out, {picture_name(cell.low + i): picture(image) for i, image in enumerate(images)})

    def facts(self) -> dict[str, Any]:
        """What is known about how the images are, or were, made."""
        return read_manifest(self.out / ".atonce.json") or {}

    def finish(self, cells: Sequence[Cell], labels: Tensor | None, stop: Event) -> None:
        """See that all images are there.

        Args:
            cells: All cells.
            labels: Not used: they are written at the beginning.
            stop: Not used.

        Raises:
            StorageError: One is missing.
        """
        for cell, present in zip(cells, self.present(cells), strict=True):
            if not present:
                raise StorageError(
                    f"{self.out} lacks images from {picture_name(cell.low)} on: run the same command again; processes on "
                    "several machines need an --out that all of them can see"
                )


def _write_durably(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write many small files, each whole or not at all, and wait once for the disk instead of once for each."""

    def put(name: str) -> None:
        with open(folder / f".{name}.tmp", "wb") as file:
            file.write(files[name])
            file.flush()
            os.fsync(file.fileno())

    with storage_errors(folder):
        try:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(put, files))
            for name in files:
                os.replace(folder / f".{name}.tmp", folder / name)
        except BaseException:
            for name in files:
                (folder / f".{name}.tmp").unlink(missing_ok=True)
            raise
        sync_folder(folder)
