"""The run folder: what belongs where, who owns it, and a log that a resumed run continues as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import storage_errors, write_json
from atonce.training.recipe import Recipe


class RunFolder:
    """Paths of a run and the files that are not checkpoints.

    ``recipe.json`` (the resolved recipe), ``run.json`` (data, versions, machine), ``log.jsonl``, ``checkpoints/``, ``samples/``,
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
        """
        if not self.recipe_file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(f"{self.path} exists and is not a training run: choose another folder, nothing was changed")
            with storage_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.run_file, facts)
            write_json(self.recipe_file, recipe.as_dict())  # last: its presence says that the folder is complete
            return False
        if not resume:
            raise InputError(f"{self.path} holds a run already: choose another folder, or resume it")
        theirs = self.read_recipe()
        if differences := theirs.differences(recipe):
            raise InputError(f"{self.path} belongs to another recipe; it differs in {'; '.join(differences)}: choose another folder")
        data = self.read_facts().get("data", {})
        if data.get("digest") != facts["data"]["digest"]:
            raise InputError(
                f"{self.path} was trained on other data ({data.get('name')}, digest {str(data.get('digest'))[:12]}, now "
                f"{facts['data']['name']}, {facts['data']['digest'][:12]}): choose another folder"
            )
        return True

    def read_recipe(self) -> Recipe:
        """The recipe that is saved here.

        Raises:
            ModelFileError: There is none, or it cannot be read.
        """
        try:
            return Recipe.from_dict(json.loads(self.recipe_file.read_text()))
        except FileNotFoundError:
            raise ModelFileError(f"{self.path} is not a training run: it has no recipe.json") from None
        except (OSError, ValueError, TypeError) as error:
            raise ModelFileError(f"{self.recipe_file} cannot be read: {error}") from error

    def read_facts(self) -> dict[str, Any]:
        """The content of run.json, empty where it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.run_file.read_text()))
        return {}

    def append(self, line: dict[str, Any]) -> None:
        """Append one line to the log.

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
            return file.seek(0, os.SEEK_END)

    def cut_log(self, size: int) -> None:
        """Forget what the log says beyond a checkpoint; the resumed run writes it again."""
        if self.log_file.exists():
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


def replace_folder(new: Path, old: Path) -> None:
    """Put a finished folder in the place of another one.

    Args:
        new: The finished folder, on the same file system.
        old: Where it goes; what is there is removed.

    Raises:
        StorageError: It could not be moved.
    """
    aside = old.with_name(f".{old.name}.old")
    with storage_errors(old):
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists():
            old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside, ignore_errors=True)
