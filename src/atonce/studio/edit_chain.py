"""The pictures of somebody's editing: each knows which one it came from, so nothing is lost by going back and on elsewhere."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.core.files import write_bytes, write_json

MOST_STEPS = 80
"""Pictures that are remembered; beyond them the oldest ends that nothing came of are forgotten."""
_FOLDER = "edit"
_FILE = "chain.json"


@dataclass(frozen=True)
class Step:
    """One picture, or several that were made together and of which one is chosen.

    Attributes:
        id: For programs.
        parent: Id of the picture that it was made from; ``None`` for a beginning.
        title: In words.
        record: How it was made.
        count: How many pictures there are.
        chosen: Which of them goes on.
        size: Width and height, pixels.
        made: When, ISO 8601.
    """

    id: str
    parent: str | None
    title: str
    record: dict[str, Any]
    count: int
    chosen: int
    size: tuple[int, int]
    made: str


@dataclass(frozen=True)
class Chain:
    """All steps.

    Attributes:
        steps: In the order in which they were made.
        current: Id of the one that is shown; ``None`` where there is none.
        visited: For each step the one that was last gone on to, by ids.
    """

    steps: tuple[Step, ...] = ()
    current: str | None = None
    visited: dict[str, str] = field(default_factory=dict)

    def get(self, key: str | None) -> Step | None:
        """A step by its id."""
        return next((step for step in self.steps if step.id == key), None)

    @property
    def shown(self) -> Step | None:
        """The step that is shown."""
        return self.get(self.current)

    @property
    def before(self) -> Step | None:
        """What undo goes to."""
        shown = self.shown
        return None if shown is None else self.get(shown.parent)

    @property
    def after(self) -> Step | None:
        """What redo goes to: the step last gone on to, else the latest."""
        if self.current is None:
            return None
        children = [step for step in self.steps if step.parent == self.current]
        last = self.get(self.visited.get(self.current))
        return last if last in children else (children[-1] if children else None)

    def path(self) -> list[Step]:
        """From the beginning to what is shown."""
        found: list[Step] = []
        step = self.shown
        while step is not None and step not in found:
            found.append(step)
            step = self.get(step.parent)
        return found[::-1]


class Album:
    """Somebody's chain on the disk; safe for several pages of one person at once.

    Args:
        folder: Of the person.
        lock: Held while the chain changes.
    """

    def __init__(self, folder: Path, lock: threading.Lock) -> None:
        self._folder, self._lock = folder / _FOLDER, lock

    def chain(self) -> Chain:
        """The chain as it is; empty where there is none or its file is damaged."""
        try:
            kept = json.loads((self._folder / _FILE).read_text())
            steps = tuple(Step(**{**step, "size": tuple(step["size"])}) for step in kept["steps"])
            chain = Chain(steps, kept["current"], dict(kept["visited"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Chain()
        return chain if chain.shown is not None or not steps else dataclasses.replace(chain, current=steps[-1].id)

    def picture(self, step: Step, number: int | None = None) -> bytes:
        """A picture as the content of a PNG file.

        Args:
            step: Its step.
            number: Which; default the chosen one.

        Returns:
            The content.

        Raises:
            InputError: It is not there any more.
        """
        try:
            return self._file(step.id, step.chosen if number is None else number).read_bytes()
        except OSError as problem:
            raise InputError("this picture is not there any more: choose another one of the history") from problem

    def add(
        self,
        pictures: Sequence[bytes],
        title: str,
        record: dict[str, Any],
        size: tuple[int, int],
        parent: str | None,
        chosen: int = 0,
    ) -> tuple[Step, bool]:
        """Remember pictures; they are shown unless the person has gone elsewhere since the work began.

        Args:
            pictures: PNG files.
            title: In words.
            record: How they were made.
            size: Width and height of each.
            parent: Id of what they were made from; ``None`` for a beginning, which is shown at once.
            chosen: Which goes on.

        Returns:
            The step, and whether it is shown now.
        """
        with self._lock:
            chain = self.chain()
            step = Step(
                secrets.token_hex(6),
                parent,
                title,
                record,
                len(pictures),
                chosen,
                size,
                datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number, content in enumerate(pictures):
                write_bytes(self._file(step.id, number), content)
            show = parent is None or chain.current == parent
            visited = chain.visited | ({parent: step.id} if parent is not None else {})
            steps = (*chain.steps, step)
            self._write(_forget(Chain(steps, step.id if show else chain.current, visited)))
            return step, show

    def go(self, key: str | None) -> Chain:
        """Show another step.

        Args:
            key: Its id.

        Returns:
            The chain.

        Raises:
            InputError: It is not there.
        """
        with self._lock:
            chain = self.chain()
            step = chain.get(key)
            if step is None:
                raise InputError("this step is not there any more: load the page again")
            visited = chain.visited | ({step.parent: step.id} if step.parent is not None else {})
            return self._write(Chain(chain.steps, step.id, visited))

    def undo(self) -> Chain:
        """Show what the present picture was made from; at a beginning nothing changes."""
        before = self.chain().before
        return self.chain() if before is None else self._back(before.id)

    def redo(self) -> Chain:
        """Show what was made from the present picture; where nothing was, nothing changes."""
        after = self.chain().after
        return self.chain() if after is None else self.go(after.id)

    def choose(self, number: int) -> Chain:
        """Go on with another of several pictures.

        Args:
            number: Which.

        Returns:
            The chain.

        Raises:
            InputError: There is none of that number.
        """
        with self._lock:
            chain = self.chain()
            shown = chain.shown
            if shown is None or not 0 <= number < shown.count:
                raise InputError(f"there is no picture {number + 1} here: choose one that is shown")
            steps = tuple(dataclasses.replace(step, chosen=number) if step.id == shown.id else step for step in chain.steps)
            return self._write(dataclasses.replace(chain, steps=steps))

    def clear(self) -> Chain:
        """Forget everything; the files are removed."""
        with self._lock:
            shutil.rmtree(self._folder, ignore_errors=True)
            return Chain()

    def _back(self, key: str) -> Chain:
        with self._lock:
            return self._write(dataclasses.replace(self.chain(), current=key))

    def _file(self, key: str, number: int) -> Path:
        return self._folder / f"{key}-{number}.png"

    def _write(self, chain: Chain) -> Chain:
        write_json(self._folder / _FILE, asdict(chain))
        known = {step.id for step in chain.steps}
        for path in self._folder.glob("*.png"):
            if path.name.partition("-")[0] not in known:
                path.unlink(missing_ok=True)
        return chain


def _forget(chain: Chain) -> Chain:
    """Without the oldest steps that nothing was made from, once there are too many; what is shown and how it came stays."""
    steps = list(chain.steps)
    kept = {step.id for step in chain.path()} | {steps[-1].id}
    while len(steps) > MOST_STEPS:
        parents = {step.parent for step in steps}
        gone = next((step for step in steps if step.id not in parents and step.id not in kept), None)
        if gone is None:
            break
        steps.remove(gone)
    return dataclasses.replace(
        chain, steps=tuple(steps), visited={a: b for a, b in chain.visited.items() if b in {s.id for s in steps}}
    )
