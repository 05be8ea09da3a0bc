"""The run folder: what belongs where, who owns it, and a log that a resumed run continues as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import storage_errors, sync_folder, write_json
from atonce.training.recipe import Recipe


class RunFolder:
    """Paths of a run and the files that are not checkpoints.

    ``recipe.json`` (the resolved recipe), ``run.json`` (data, versions), ``log.jsonl``, ``checkpoints/``,
    ``samples/``, ``snapshots/`` (of power-function averages),
    ``tensorboard/``, ``model/`` (the last weights), ``best/`` (those with the lowest monitored distance).

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.json"
        self.run_file = self.path / "run.json"
        self.log_file = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.snapshots = self.path / "snapshots"
        self.tensorboard = self.path / "tensorboard"
        self.model = self.path / "model"
        self.best = self.path / "best"

    def claim(self, recipe: Recipe, facts: dict[str, Any], resume: bool) -> bool:
        """Take a new folder for this run, or recognise it as this run's.

        Args:
            recipe: The resolved recipe.
            facts: What else identifies the run: ``data`` (name and digest) above all.
            resume: Whether a run that is there may be continued.

        Returns:
            Whether the folder held this run already.

        Raises:
            InputError: The folder holds something else, or another recipe or data (the message says what differs), or a run
                although ``resume`` is off.
            ModelFileError: What describes the run is damaged.
            StorageError: The folder cannot be read or written.
        """
        with storage_errors(self.path):
            known = self.recipe_file.exists()
            if not known and self.path.exists() and not self._is_free():
                raise InputError(f"{self.path} exists and is not a training run: choose another folder, nothing was changed")
            if not known:
                self.path.mkdir(parents=True, exist_ok=True)
                write_json(self.run_file, facts)
                write_json(self.recipe_file, recipe.as_dict())  # last: its presence says that the folder is complete
                return False
        if not resume:
            raise InputError(f"{self.path} holds a run already: choose another folder, or resume it")
        if differences := self.read_recipe().differences(recipe):
            text = "; ".join(differences)
            raise InputError(f"{self.path} belongs to another recipe; it differs in {text}: choose another folder")
        theirs, ours = self.read_facts().get("data"), facts["data"]
        if not isinstance(theirs, dict):
            raise ModelFileError(
                f"{self.run_file} is missing or damaged, so nothing says what data the run had: start a new one"
            )
        if theirs.get("digest") != ours["digest"]:
            was, now = (f"{data.get('name')}, digest {str(data.get('digest'))[:12]}" for data in (theirs, ours))
            raise InputError(f"{self.path} was trained on other data ({was}; now {now}): choose another folder")
        return True

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes of this machine from training in the folder; ends with the process at the latest.

        Raises:
            InputError: Another process trains here.
        """
        try:
            import fcntl
        except ImportError:  # a system without such locks
            yield
            return
        with open(self.recipe_file, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another process trains in {self.path} now: wait for it, stop it, or choose another folder"
                ) from None
            except OSError:  # a file system without such locks
                pass
            yield

    def tidy(self) -> None:
        """Remove what a kill in the middle of writing left behind."""
        for folder in (self.path, self.samples, self.checkpoints):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)
        for folder in (self.model, self.best):
            for path in (_new(folder), _old(folder)):
                shutil.rmtree(path, ignore_errors=True)

    def read_recipe(self) -> Recipe:
        """The recipe that is saved here.

        Returns:
            The resolved recipe.

        Raises:
            ModelFileError: There is none, or it cannot be read.
        """
        try:
            values = json.loads(self.recipe_file.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ModelFileError(f"{self.recipe_file} cannot be read: it holds no recipe")
            return Recipe.from_dict(values)
        except FileNotFoundError:
            raise ModelFileError(f"{self.path} is not a training run: it has no recipe.json") from None
        except ModelFileError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise ModelFileError(f"{self.recipe_file} cannot be read: {error}") from error

    def read_facts(self) -> dict[str, Any]:
        """The content of run.json, empty where it cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return dict(json.loads(self.run_file.read_text(encoding="utf-8")))
        return {}

    def append(self, line: dict[str, Any]) -> None:
        """Append one line to the log.

        Args:
            line: JSON values.

        Raises:
            StorageError: The disk is full or the place cannot be written.
        """
        with storage_errors(self.log_file), open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def log_size(self) -> int:
        """Bytes of the log, made durable: a checkpoint notes how far it reaches."""
        if not self.log_file.exists():
            return 0
        with storage_errors(self.log_file), open(self.log_file, "rb+") as file:
            os.fsync(file.fileno())
            sync_folder(self.path)
            return file.seek(0, os.SEEK_END)

    def cut_log(self, size: int) -> None:
        """Forget what the log says beyond a checkpoint; the resumed run writes it again."""
        if self.log_file.exists() and self.log_file.stat().st_size > size:
            with storage_errors(self.log_file):
                os.truncate(self.log_file, size)

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log; a last line cut short by a kill is left out."""
        lines: list[dict[str, Any]] = []
        if self.log_file.exists():
            for line in self.log_file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def _is_free(self) -> bool:
        """Whether the folder is empty but for what a kill between the first two files leaves."""
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir()}
        leftovers = {name for name in names if name.startswith((".run.json.", ".recipe.json.")) and name.endswith(".tmp")}
        if self.read_facts().keys() >= {"data", "versions", "started"}:
            leftovers.add(self.run_file.name)
        return names <= leftovers


def replace_folder(new: Path, old: Path) -> None:
    """Put a finished folder in the place of another one.

    Args:
        new: The finished folder, on the same file system.
        old: Where it goes; what is there is removed.

    Raises:
        StorageError: It could not be moved.
    """
    aside = _old(old)
    with storage_errors(old):
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists():
            old.rename(aside)
        new.rename(old)
        sync_folder(old.parent)
        shutil.rmtree(aside, ignore_errors=True)


def empty_beside(folder: Path) -> Path:
    """A path beside a folder under which its next content is written; what an earlier try left there is removed.

    Args:
        folder: The folder that will be replaced.

    Returns:
        The path; nothing is there.
    """
    path = _new(folder)
    with storage_errors(path):
        if path.exists():
            shutil.rmtree(path)
    return path


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
