"""What a job leaves on the disk: finished parts that survive a kill, and one result that is put together from them.

::

    STATE/jobs/.place                      the mark by which the database knows this folder
    STATE/jobs/JOB/PIN/size                images of each part
    STATE/jobs/JOB/PIN/00000256.part       images from 256 on, made with what PIN stands for
    STATE/jobs/JOB/result-SHA256.zip       the result

A part is one line of JSON and the bytes of its images; the line carries their digest, so a part that was damaged is made again.
Parts made with another version or backend lie in another folder: a process that lost its job and does not know it yet can do no
harm, since what it writes under the same name has the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atonce.core.files import sha256_file, storage_errors, sync_folder, write_atomic
from atonce.reports.outputs import picture_name, write_output
from atonce.serving.private import FILE, private_file, private_folder

JOB = re.compile(r"job_[0-9a-f]{24}")
_PART = re.compile(r"\d{8,}\.part")


class JobFiles:
    """The files of all jobs of one folder.

    Args:
        folder: The folder; made where it is missing.

    Raises:
        StorageError: It cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storage_errors(folder):
            private_folder(folder)

    def mark(self) -> str:
        """A mark that this folder keeps, so that replicas can see whether they share it."""
        file = self.folder / ".place"
        with storage_errors(file):
            if not file.exists():
                own = self.folder / f".place.{uuid.uuid4().hex}"
                private_file(own).write_text(uuid.uuid4().hex, encoding="ascii")
                with contextlib.suppress(FileExistsError):  # another process was quicker
                    os.link(own, file)
                own.unlink()
            return file.read_text(encoding="ascii").strip()

    def parts(self, job: str, pin: str) -> Parts:
        """The parts of a job that were made with what ``pin`` says; those made with anything else are deleted."""
        name = hashlib.sha256(pin.encode()).hexdigest()[:16]
        with contextlib.suppress(OSError):
            for other in (self.folder / job).iterdir():
                if other.is_dir() and other.name != name:
                    shutil.rmtree(other, ignore_errors=True)
        return Parts(self.folder / job / name)

    def keep(self, job: str, suffix: str, write: Callable[[Path], None]) -> tuple[str, str, int]:
        """Put the result of a job in place.

        Args:
            job: Its id.
            suffix: ``.zip`` or ``.npz``.
            write: Writes the whole result to the path that it is given.

        Returns:
            Name of the file, hex SHA-256 of its content, and its size.

        Raises:
            StorageError: The disk is full.
        """
        whole = self.folder / job / f"whole{suffix}.{uuid.uuid4().hex}"
        try:
            with storage_errors(whole):
                private_folder(whole.parent)
            write_atomic(whole, write, mode=FILE)
            with storage_errors(whole):
                digest, size = sha256_file(whole), whole.stat().st_size
                file = whole.with_name(f"result-{digest}{suffix}")
                os.replace(whole, file)
                sync_folder(file.parent)
        finally:
            whole.unlink(missing_ok=True)
        return file.name, digest, size

    def result(self, job: str, name: str) -> Path:
        """Where the result of a job lies."""
        return self.folder / job / name

    def clear_parts(self, job: str) -> None:
        """Delete the parts of a job whose result is in place; a failure is no harm, the sweep comes again."""
        with contextlib.suppress(OSError):
            for path in (self.folder / job).iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif not path.name.startswith("result-"):
                    path.unlink(missing_ok=True)

    def remove(self, job: str) -> None:
        """Delete everything of a job."""
        if JOB.fullmatch(job):
            shutil.rmtree(self.folder / job, ignore_errors=True)

    def sweep(self, unknown: Callable[[Sequence[str]], list[str]]) -> None:
        """Delete what belongs to no job any more.

        Args:
            unknown: Says which of some ids are not those of a job that waits, runs or has a result.
        """
        with contextlib.suppress(OSError):
            there = [path.name for path in self.folder.iterdir() if path.is_dir() and JOB.fullmatch(path.name)]
            for start in range(0, len(there), 500):
                for job in unknown(there[start : start + 500]):
                    self.remove(job)


class Parts:
    """The finished parts of one job.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def size(self, wanted: int) -> int:
        """Images of one part: what was wanted when the first of these parts was begun.

        Args:
            wanted: What is wanted now.

        Returns:
            The number to cut by.

        Raises:
            StorageError: The disk is full.
        """
        file = self.folder / "size"
        try:
            return max(1, int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):

            def write(path: Path) -> None:
                path.write_text(str(wanted), encoding="ascii")

            self._put(file, write)
            return wanted

    def write(self, first: int, images: Tensor, facts: Mapping[str, Any] | None = None) -> None:
        """Keep a part, whole or not at all.

        Args:
            first: Place of its first image in the job.
            images: uint8 [k, C, H, W].
            facts: JSON values that belong to it.

        Raises:
            StorageError: The disk is full.
        """
        content = images.contiguous().numpy().tobytes()
        told = {"shape": list(images.shape), "facts": dict(facts or {})}
        line = json.dumps({"sha256": _digest(told, content), **told}).encode()

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                file.write(line + b"\n")
                file.write(content)

        self._put(self._file(first), write)

    def read(self, first: int) -> tuple[Tensor, dict[str, Any]] | None:
        """A part as it was written; ``None`` where it is missing or damaged."""
        try:
            line, _, content = self._file(first).read_bytes().partition(b"\n")
            told = json.loads(line)
            if told.pop("sha256") != _digest(told, content):
                return None
            images = np.frombuffer(bytearray(content), dtype=np.uint8).reshape(told["shape"])
            return torch.from_numpy(images), told["facts"]
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def _put(self, file: Path, write: Callable[[Path], None]) -> None:
        with storage_errors(file):
            private_folder(self.folder.parent)
            private_folder(self.folder)
        write_atomic(file, write, mode=FILE)

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:08d}.part"


def write_result(
    path: Path,
    form: str,
    parts: Iterable[Tensor],
    shape: tuple[int, int, int, int],
    manifest: dict[str, Any],
    encode: Callable[[Tensor, int], bytes],
) -> None:
    """Put images together as one file; equal images and manifests give equal bytes.

    Args:
        path: The file.
        form: ``npz`` (``arr_0`` uint8 [N, H, W, C], ``arr_1`` labels and ``arr_2`` seeds, int64 [N]), or the suffix of the
            pictures in a zip.
        parts: uint8 [k, C, H, W], one after the other.
        shape: (N, C, H, W) of all together.
        manifest: Facts, kept as ``manifest.json``; ``images`` has one entry for each image, and gets ``file`` and ``sha256``.
        encode: Writes one image uint8 [C, H, W] as a picture, given its place.
    """
    entries = manifest["images"]
    if form == "npz":
        labels = [-1 if entry["label"] is None else entry["label"] for entry in entries]
        known = torch.tensor(labels) if labels and min(labels) >= 0 else None
        write_output(path, "npz", parts, shape, labels=known)
        with zipfile.ZipFile(path, "a") as archive:
            if all(entry["seed"] is not None for entry in entries):
                with archive.open(zipfile.ZipInfo("arr_2.npy"), "w") as file:
                    seeds = np.array([entry["seed"] for entry in entries], dtype=np.int64)
                    np.lib.format.write_array(file, seeds, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo("manifest.json"), json.dumps(manifest, indent=1))
        return
    images = (image for part in parts for image in part)
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for place, (entry, image) in enumerate(zip(entries, images, strict=True)):
            content = encode(image, place)
            entry["file"] = picture_name(place).replace(".png", f".{form}")
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            archive.writestr(zipfile.ZipInfo(entry["file"]), content)  # stored: pictures are compressed already
        archive.writestr(zipfile.ZipInfo("manifest.json"), json.dumps(manifest, indent=1))


def _digest(told: Mapping[str, Any], content: bytes) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode() + b"\n" + content).hexdigest()
