"""A file of generated images that is assembled from parts: what is there already, and what survives a kill.

The parts lie in a hidden folder beside the file, ``.NAME.parts``, with a manifest of the settings they were made with.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import InputError, StorageError
from atonce.core.files import storage_errors, sync_folder, write_atomic, write_json
from atonce.reports.begun import Cell, Facts, Stopped, differences, lock, only, read_manifest
from atonce.reports.outputs import Kind, write_output
from atonce.reports.pictures import facts_of

_OWN = re.compile(r"\d+\.npy|whole|\..*\.tmp")  # what a folder of parts can hold beside its manifest


@dataclass(frozen=True)
class FileTarget:
    """A file that is assembled from parts.

    Attributes:
        out: The file.
        kind: What it is.
        shape: (C, H, W) of the images.
    """

    out: Path
    kind: Kind
    shape: tuple[int, int, int]

    @property
    def parts(self) -> Path:
        """The folder of parts."""
        return self.out.with_name(f".{self.out.name}.parts")

    def prepare(self, facts: Facts, labels: Tensor | None, held: contextlib.ExitStack) -> bool:
        """Check what is there and begin, or continue.

        Args:
            facts: What is to be made.
            labels: Not used: a file gets its labels at the end.
            held: Keeps other processes away until it is closed.

        Returns:
            Whether the file is there already, made by the same command.

        Raises:
            InputError: Something else is in the way, or another process is at work.
            StorageError: The folder of parts cannot be made.
        """
        with storage_errors(self.parts):
            if self._check_out(facts):
                self._clear(facts)
                return True
            self.parts.mkdir(parents=True, exist_ok=True)
            if not held.enter_context(lock(self.parts, wait=False)):
                raise InputError(f"another process is making {self.out} now: wait for it, or choose another name")
            there = read_manifest(self.parts / "manifest.json")
            if there is None:  # nothing was begun, or all but the clearing away was done
                only(self.parts, _OWN.fullmatch)
                for path in self.parts.iterdir():
                    path.unlink()
                write_json(self.parts / "manifest.json", dict(facts))
            elif differs := differences(there, facts):
                raise InputError(
                    f"{self.out} was begun with other settings ({differs}): give the same ones, choose another name, "
                    f"or delete {self.parts}"
                )
        return False

    def _check_out(self, facts: Facts) -> bool:
        if not self.out.exists():
            return False
        there = facts_of(self.out)
        if there is None:
            raise InputError(f"{self.out} exists and was not made by atonce: choose another name, nothing was changed")
        differs = differences(there, facts)
        if differs and self.kind in ("zip", "npz"):  # a grid is a picture of the moment, these may be days of work
            raise InputError(
                f"{self.out} holds images made with other settings ({differs}): choose another name or delete it, "
                "nothing was changed"
            )
        return not differs

    def present(self, cells: Sequence[Cell]) -> list[bool]:
        """Which cells are there, whole."""
        return [self._read(cell) is not None for cell in cells]

    def note_calls(self, calls: int) -> None:
        """Keep the number of network calls; every process does so before it writes its first part."""
        there = read_manifest(self.parts / "manifest.json")
        if there is not None and there.get("calls") != calls:
            write_json(self.parts / "manifest.json", {**there, "calls": calls})

    def write(self, cell: Cell, images: Tensor) -> None:
        """Keep the images uint8 [k, C, H, W] of a cell."""

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.save(file, images.numpy(), allow_pickle=False)

        write_atomic(self._part(cell), save)

    def facts(self) -> dict[str, Any]:
        """What is known about how the images are, or were, made."""
        return read_manifest(self.parts / "manifest.json") or (facts_of(self.out) if self.out.exists() else None) or {}

    def finish(self, cells: Sequence[Cell], labels: Tensor | None, stop: Event) -> None:
        """Assemble the file, put it in place, and clear the parts away.

        Args:
            cells: All cells.
            labels: Classes of all images, int64 [n].
            stop: Set where somebody asks to stop.

        Raises:
            InputError: Something else appeared in the file's place.
            StorageError: A part is missing, or the disk is full.
            Stopped: It was asked for.
        """
        first, facts = cells[0].low, self.facts()

        def parts() -> Iterator[Tensor]:
            for cell in cells:
                if stop.is_set():
                    raise Stopped
                part = self._read(cell)
                if part is None:
                    raise StorageError(
                        f"{self._part(cell)} is missing: run the same command again; processes on several machines need "
                        "an --out that all of them can see"
                    )
                yield torch.from_numpy(np.array(part))

        whole, shape = self.parts / "whole", (cells[-1].high - first, *self.shape)
        write_atomic(whole, lambda path: write_output(path, self.kind, parts(), shape, first=first, labels=labels, facts=facts))
        self._check_out(facts)
        with storage_errors(self.out):
            os.replace(whole, self.out)
            sync_folder(self.out.parent)
        self._clear(facts)

    def _clear(self, facts: Facts) -> None:
        """Remove the parts of a file that is finished; a failure is no harm, the next command tries again."""
        with contextlib.suppress(OSError, InputError):
            there = read_manifest(self.parts / "manifest.json")
            if there is not None and not differences(there, facts):
                (self.parts / "manifest.json").unlink()
            only(self.parts, _OWN.fullmatch)
            shutil.rmtree(self.parts)

    def _part(self, cell: Cell) -> Path:
        return self.parts / f"{cell.low:012d}.npy"

    def _read(self, cell: Cell) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        try:
            part: np.ndarray[Any, np.dtype[Any]] = np.load(self._part(cell), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return part if part.dtype == np.uint8 and part.shape == (cell.high - cell.low, *self.shape) else None
