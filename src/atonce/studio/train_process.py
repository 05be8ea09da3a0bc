"""Trainings as processes of their own: started, stopped as the loop expects it, and known again after a restart of the server.

Beside the run folders lies ``.studio/NAME.json`` with the command, who asked for it, and which process it became; ``NAME.out``
and ``NAME.err`` hold what the process said. A process is known by its number together with the moment at which it began, so
that a number which the system has given to somebody else since is never signalled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from atonce.core.errors import InputError
from atonce.core.files import lock, storage_errors, write_json
from atonce.serving.job_process import host_name, started
from atonce.studio.train_form import check_name

AT_ONCE = 2  # trainings of one studio that run at the same time
FOLDER = ".studio"
_NICE = 5
_HERE = Path(__file__).resolve().parents[2]  # where this package is, installed or not


@dataclass(frozen=True)
class Launch:
    """A training that this studio has started.

    Attributes:
        name: Of the run.
        command: Words behind the program's name.
        cwd: Folder in which it was started.
        owner: Sign of the person who asked for it.
        private: Whether only that person may see it.
        data: What the data are called.
        at: When it was started or continued last, seconds since 1970.
        pid: The process; 0 where none was started.
        began: When the process began, as the system counts.
        host: The machine since it was last started, and the space of process numbers.
        asked: When it was last asked to stop; ``None`` where it was not.
    """

    name: str
    command: tuple[str, ...]
    cwd: str
    owner: str
    private: bool
    data: str
    at: float
    pid: int = 0
    began: str = ""
    host: str = ""
    asked: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its process runs, on this machine."""
        if self.pid <= 0 or self.host != host_name():
            return False
        now = started(self.pid)
        return now is not None and now == self.began


def sign(person_id: str) -> str:
    """What stands for a person in files that others may read."""
    return hashlib.sha256(f"atonce studio\0{person_id}".encode()).hexdigest()[:16]


class Trainings:
    """The trainings of one folder of runs.

    Args:
        runs: The folder.
        at_once: How many may run at the same time.
        program: What is started, before the words of the command; default: this package.
    """

    def __init__(self, runs: Path, at_once: int = AT_ONCE, program: Sequence[str] | None = None) -> None:
        self.runs, self.at_once = runs, at_once
        # -P: nothing is imported from the folder in which the server happens to be.
        self._program = [sys.executable, "-P", "-m", "atonce"] if program is None else [*program]
        self.notes = runs / FOLDER
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._guard = threading.Lock()

    # ---- what is known

    def launch(self, name: str) -> Launch | None:
        """The note of a run; ``None`` where this studio has not started it, or the note cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads((self.notes / f"{name}.json").read_text(encoding="utf-8"))
            return Launch(**{**values, "command": tuple(values["command"])})
        return None

    def launches(self) -> dict[str, Launch]:
        """All notes, by name."""
        files = sorted(self.notes.glob("*.json")) if self.notes.is_dir() else []
        return {file.stem: found for file in files if (found := self.launch(file.stem)) is not None}

    def said(self, name: str, which: str = "err", most: int = 1 << 16) -> str:
        """The end of what a training's process has said.

        Args:
            name: Of the run.
            which: ``"out"`` or ``"err"``.
            most: Bytes.

        Returns:
            The text; empty where there is none.
        """
        with contextlib.suppress(OSError), open(self.notes / f"{name}.{which}", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return file.read().decode("utf-8", "replace")
        return ""

    def running(self) -> list[Launch]:
        """Trainings whose process runs now."""
        return [launch for launch in self.launches().values() if launch.alive]

    # ---- what is done

    def start(self, name: str, command: list[str], *, owner: str, private: bool, data: str) -> Launch:
        """Start a new run.

        Args:
            name: Of the run and its folder, which must not be there yet.
            command: ``train`` and its arguments, of which ``--out`` is the run's folder.
            owner: Sign of the person (:func:`sign`).
            private: Whether only that person may see it.
            data: What the data are called.

        Returns:
            Its note.

        Raises:
            InputError: The name is taken or cannot be used, or too many trainings run.
            StorageError: The note cannot be written.
        """
        check_name(name)
        note = Launch(name, tuple(command), os.getcwd(), owner, private, data, time.time())
        with self._turn():
            before = self.launch(name)
            if (self.runs / name).exists() or (before is not None and (before.alive or before.owner != owner)):
                raise InputError(f"there is a run called {name!r} already, and it is not overwritten: choose another name")
            return self._begin(note)

    def resume(self, name: str, owner: str, sure: bool = False) -> Launch:
        """Continue a run by the command that began it.

        Args:
            name: Of the run.
            owner: Sign of the person who asks.
            sure: Whether a run of somebody else is meant.

        Returns:
            Its note.

        Raises:
            InputError: This studio did not start it, it runs, or too many do.
            StorageError: The note cannot be written.
        """
        with self._turn():
            note = self._mine(name, owner, sure, "continue")
            if note.alive:
                raise InputError(f"{name} runs already: nothing is to be continued")
            return self._begin(replace(note, at=time.time(), asked=None))

    def stop(self, name: str, owner: str, sure: bool = False) -> Launch:
        """Ask a training to stop: it saves a checkpoint and ends, and the same command continues it.

        Args:
            name: Of the run.
            owner: Sign of the person who asks.
            sure: Whether a run of somebody else is meant.

        Returns:
            Its note.

        Raises:
            InputError: This studio did not start it, it does not run, or it was asked already.
            StorageError: The note cannot be written.
        """
        with self._turn():
            note = self._mine(name, owner, sure, "stop")
            if not note.alive:
                raise InputError(f"{name} does not run: there is nothing to stop")
            if note.asked is not None:
                raise InputError(
                    f"{name} was asked to stop {time.time() - note.asked:.0f} s ago: it saves what it has, and ends"
                )
            self._signal(note)
            note = replace(note, asked=time.time())
            self._write(note)
            return note

    # ---- inside

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One change at a time, also among servers that share the folder."""
        with storage_errors(self.notes):
            self.notes.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._guard, lock(self.notes, wait=True):
            yield

    def _mine(self, name: str, owner: str, sure: bool, what: str) -> Launch:
        note = self.launch(name) if name else None
        if note is None or (note.private and note.owner != owner):
            raise InputError(f"the run {name[:80]!r} was not started here: {what} it where it was started")
        if note.owner != owner and not sure:
            raise InputError(f"{name} was started from another browser: say that you mean it to {what} it all the same")
        return note

    def _begin(self, note: Launch) -> Launch:
        if len(running := self.running()) >= self.at_once:
            names = ", ".join(
                "one of somebody else" if launch.private and launch.owner != note.owner else launch.name for launch in running
            )
            raise InputError(f"{len(running)} trainings run already ({names}), at most {self.at_once} may: stop one, or wait")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # it is alone
            environment.pop(name, None)
        with storage_errors(self.notes), open(self._file(note, "out"), "wb") as out, open(self._file(note, "err"), "wb") as err:
            # A session of its own: what ends the server, Ctrl-C in its terminal for example, does not reach the training.
            process = subprocess.Popen(
                [*self._program, *note.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=note.cwd,
                env=environment,
                start_new_session=True,
            )
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        note = replace(note, pid=process.pid, began=started(process.pid) or "", host=host_name())
        self._children[note.name] = process
        threading.Thread(target=process.wait, name=f"training-{note.name}", daemon=True).start()
        self._write(note)
        return note

    def _signal(self, note: Launch) -> None:
        """SIGINT, which the loop takes for a wish; SIGTERM where the process was started with SIGINT ignored.

        Raises:
            InputError: The process cannot be told from another one.
        """
        child = self._children.get(note.name)
        if child is not None and child.pid == note.pid:
            child.send_signal(_wish(note.pid))
            return
        if not note.began:
            raise InputError(f"this system does not say when process {note.pid} began, so it is not signalled: stop it by hand")
        if not hasattr(os, "pidfd_open"):
            os.kill(note.pid, _wish(note.pid))
            return
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(note.pid)  # from here on it is this process, whatever happens to its number
            try:
                if started(note.pid) == note.began:
                    signal.pidfd_send_signal(handle, _wish(note.pid))
            finally:
                os.close(handle)

    def _file(self, note: Launch, kind: str) -> Path:
        return self.notes / f"{note.name}.{kind}"

    def _write(self, note: Launch) -> None:
        write_json(self._file(note, "json"), asdict(note))


def _wish(pid: int) -> signal.Signals:
    """The signal that a process heeds."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        ignored = int(next(line for line in lines if line.startswith("SigIgn:")).split()[1], 16)
        if ignored >> (signal.SIGINT - 1) & 1:
            return signal.SIGTERM
    return signal.SIGINT
