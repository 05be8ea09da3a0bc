"""The runs of a folder as they stand, read from what they have written: which there are, how far they are, what went wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atonce.core.errors import AtonceError
from atonce.studio.train_process import Launch, Trainings
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder

DEPTH = 4  # folders below that of the runs in which runs are looked for
MOST = 500  # runs that are listed
_SHOWN = re.compile(r"^training {2}.*?(?P<share>\d+) %.*?left (?P<left>\d+:\d\d:\d\d|\?)", re.MULTILINE)
_LAST = re.compile(r"^atonce: (?P<line>.+)$", re.MULTILINE)
_WARNED = re.compile(r"^atonce: (warning|note)\b")

WORDS = {
    "starting": "starting",
    "running": "running",
    "stopping": "stopping: it saves what it has",
    "elsewhere": "running, started elsewhere",
    "finished": "finished",
    "stopped": "stopped; it can be continued",
    "failed": "failed",
    "interrupted": "interrupted; it can be continued from its last checkpoint",
}
"""States for people."""
ALIVE = ("starting", "running", "stopping", "elsewhere")


@dataclass(frozen=True)
class Run:
    """A run as it stands.

    Attributes:
        name: Its folder below that of the runs.
        folder: The folder; it is not there yet where the run has only just been started.
        state: A key of :data:`WORDS`.
        problem: What went wrong, one line.
        recipe: Its resolved recipe; ``None`` where it has none yet or a damaged one.
        data: Facts of its data: ``name``, ``count``, ``shape``, ``digest``.
        log: Lines of its log.
        share: How far it is, from 0 to 1; ``None`` where nobody knows.
        left: Time left, as words; empty where nobody knows.
        launch: How this studio started it; ``None`` where it did not.
        began: When it was first started, UTC.
    """

    name: str
    folder: Path
    state: str
    problem: str = ""
    recipe: Recipe | None = None
    data: dict[str, Any] = field(default_factory=dict)
    log: tuple[dict[str, Any], ...] = ()
    share: float | None = None
    left: str = ""
    launch: Launch | None = None
    began: str = ""

    @property
    def alive(self) -> bool:
        """Whether it is at work."""
        return self.state in ALIVE

    @property
    def images_seen(self) -> int:
        """Where its clock stood when it last wrote."""
        return int(self.log[-1]["images"]) if self.log else 0

    @property
    def total(self) -> int | None:
        """Images of its budget, whole batches."""
        return None if self.recipe is None else self.recipe.steps * self.recipe.batch

    @property
    def losses(self) -> list[tuple[float, float]]:
        """Images seen and loss."""
        return [(line["images"], line["loss"]) for line in self.log if isinstance(line.get("loss"), (int, float))]

    @property
    def metric(self) -> str | None:
        """What its monitored distance is called."""
        return next((name for line in self.log for name in line if name.startswith("frechet-")), None)

    @property
    def quality(self) -> list[tuple[float, float]]:
        """Images seen and monitored distance."""
        name = self.metric
        return [(line["images"], line[name]) for line in self.log if name in line] if name else []

    @property
    def seconds(self) -> float | None:
        """Time it has taken."""
        return next((float(line["seconds"]) for line in reversed(self.log) if "seconds" in line), None)

    @property
    def rate(self) -> float | None:
        """Images a second, as it last said."""
        return next((float(line["rate"]) for line in reversed(self.log) if line.get("rate")), None)

    @property
    def notes(self) -> list[str]:
        """Lines for people that stand in its log."""
        return [str(note) for line in self.log for note in line.get("notes", ())]

    def picture(self) -> Path | None:
        """The latest grid of samples."""
        found = sorted(RunFolder(self.folder).samples.glob("[0-9]*.png")) if self.folder.is_dir() else []
        return found[-1] if found else None


class Runs:
    """The runs of a folder; what has not changed is not read again.

    Args:
        trainings: Trainings that this studio has started there.
    """

    def __init__(self, trainings: Trainings) -> None:
        self.trainings = trainings
        self._read: dict[Path, tuple[tuple[int, int], tuple[dict[str, Any], ...]]] = {}

    def names(self, person: str) -> list[str]:
        """Names of the runs that a person may see, the latest first.

        Args:
            person: The person's sign.

        Returns:
            Names; at most :data:`MOST`.
        """
        found: dict[str, float] = {name: launch.at for name, launch in self.trainings.launches().items()}
        for folder in _run_folders(self.trainings.runs, DEPTH):
            name = folder.relative_to(self.trainings.runs).as_posix()
            with contextlib.suppress(OSError):
                found[name] = max(found.get(name, 0.0), (folder / "recipe.json").stat().st_mtime)
        shown = [name for name in found if self._may_see(name, person)]
        return sorted(shown, key=lambda name: -found[name])[:MOST]

    def get(self, name: str | None, person: str) -> Run | None:
        """A run.

        Args:
            name: Of :meth:`names`.
            person: The person's sign.

        Returns:
            The run; ``None`` where there is none that this person may see.
        """
        if not name or any(part in ("", ".", "..") or part.startswith(".") for part in name.split("/")):
            return None
        folder, launch = self.trainings.runs / name, self.trainings.launch(name)
        if not self._may_see(name, person) or (launch is None and not (folder / "recipe.json").is_file()):
            return None
        return self._run(name, folder, launch)

    def _may_see(self, name: str, person: str) -> bool:
        launch = self.trainings.launch(name.split("/")[0])
        return launch is None or not launch.private or launch.owner == person

    def _run(self, name: str, folder: Path, launch: Launch | None) -> Run:
        files = RunFolder(folder)
        recipe = None
        with contextlib.suppress(AtonceError):
            recipe = files.read_recipe()
        facts, log = files.read_facts(), self._log(files)
        total = None if recipe is None else recipe.steps * recipe.batch
        seen = int(log[-1]["images"]) if log else 0
        done = total is not None and seen >= total and files.model.is_dir()
        share, left = (min(1.0, seen / total) if total else None), ""
        if launch is None:
            state, problem = ("finished" if done else "elsewhere" if _held(files.recipe_file) else "interrupted"), ""
        else:
            said = self.trainings.said(name)
            state, problem = self._state(launch, said, bool(log), done)
            if state in ("running", "stopping") and (found := list(_SHOWN.finditer(said))):
                share = max(share or 0.0, int(found[-1]["share"]) / 100)
                left = found[-1]["left"].replace("?", "")
        return Run(
            name=name,
            folder=folder,
            state=state,
            problem=problem,
            recipe=recipe,
            data=dict(found_data) if isinstance(found_data := facts.get("data"), dict) else {},
            log=log,
            share=1.0 if state == "finished" else share,
            left=left,
            launch=launch,
            began=str(facts.get("started", "")),
        )

    def _state(self, launch: Launch, said: str, begun: bool, done: bool) -> tuple[str, str]:
        if launch.alive:
            if launch.asked is not None:
                return "stopping", ""
            return ("running" if begun or _SHOWN.search(said) else "starting"), ""
        if done:
            return "finished", ""
        if "stopped; the same command continues it" in self.trainings.said(launch.name, "out") or "atonce: interrupted" in said:
            return "stopped", ""
        lines = [line for line in _LAST.finditer(said) if not _WARNED.match(line[0])]
        if lines:
            return "failed", lines[-1]["line"].strip()
        if "Traceback (most recent call last)" in said:
            return "failed", said.strip().splitlines()[-1][:300]
        return ("stopped" if launch.asked is not None else "interrupted"), ""

    def _log(self, files: RunFolder) -> tuple[dict[str, Any], ...]:
        try:
            stat = files.log_file.stat()
        except OSError:
            return ()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._read.get(files.path)
        if known is None or known[0] != stamp:
            lines = tuple(line for line in files.read_log() if isinstance(line, dict) and isinstance(line.get("images"), int))
            known = stamp, lines
            if len(self._read) > MOST:
                self._read.clear()
            self._read[files.path] = known
        return known[1]


def _run_folders(folder: Path, depth: int) -> list[Path]:
    """Run folders below a folder; what lies inside of a run is none."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            path = Path(entry.path)
            if (path / "recipe.json").is_file():
                found.append(path)
            elif depth > 1 and len(found) < MOST:
                found += _run_folders(path, depth - 1)
    return found


def _held(file: Path) -> bool:
    """Whether a process of this machine trains in a run folder: the loop holds a lock on its recipe. Nothing is locked here."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = file.stat()
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            parts = line.split()
            if parts[1] == "FLOCK" and int(parts[5].split(":")[2]) == stat.st_ino:
                return True
    return False


def own_words(run: Run, line: str) -> str:
    """A line of a run's log as it is shown to people: without the places of this machine."""
    for place in {str(run.folder.resolve()), str(run.folder)}:
        line = line.replace(place, run.name)
    if run.launch is not None and "--data" in run.launch.command:
        place = run.launch.command[run.launch.command.index("--data") + 1]
        line = line.replace(place, run.launch.data) if "/" in place else line
    return line


def facts_json(run: Run) -> str:
    """The resolved recipe, readable, as JSON."""
    return json.dumps({} if run.recipe is None else {"digest": run.recipe.digest(), **run.recipe.as_dict()}, indent=2)
