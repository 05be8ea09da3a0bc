"""Inspection pages of served models, made in the background through the model's own engine, one at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.reports.inspection_material import material_of
from atonce.reports.inspection_page import inspection_page
from atonce.reports.inspection_work import check_inspection, inspect_model
from atonce.reports.page import write_page
from atonce.serving.batched_model import BatchedModel
from atonce.serving.engine import Engine
from atonce.studio.context import problem

SAMPLES = 64
FOLDER = "inspections"  # in a person's folder


@dataclass(frozen=True)
class Progress:
    """How far an inspection is.

    Attributes:
        model: The served name.
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        done: Images that went through the network.
        total: How many will; 0 while that is not known.
        since: When it began, seconds of ``time.monotonic``.
        line: What is to be said of it.
        page: The page, where it is done.
    """

    model: str
    state: str
    done: int = 0
    total: int = 0
    since: float = 0.0
    line: str = ""
    page: Path | None = None

    @property
    def left(self) -> float | None:
        """Seconds left; ``None`` where nobody knows."""
        if self.state != "running" or not self.done or not self.total:
            return None
        return (time.monotonic() - self.since) / self.done * max(0, self.total - self.done)


class Inspections:
    """Makes pages: one at a time in this process, for one person each."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._guard = threading.Lock()
        self._known: dict[str, Progress] = {}
        self._stops: dict[str, threading.Event] = {}

    def start(self, person: str, folder: Path, engine: Engine) -> None:
        """Begin a page.

        Args:
            person: Who asks.
            folder: The person's own folder.
            engine: Of the model.

        Raises:
            InputError: Another page is being made, or the model has no page.
        """
        check_inspection(engine.model, None, 0, SAMPLES)
        if not self._busy.acquire(blocking=False):
            raise InputError("another inspection is being made: wait until it is done, or stop it")
        stop = threading.Event()
        with self._guard:
            self._stops[person] = stop
            self._known[person] = Progress(engine.name, "running", since=time.monotonic(), line="opening the data")
        place = page_of(folder, engine)
        threading.Thread(
            target=self._work, args=(person, place, engine, stop), name=f"inspection-{engine.name}", daemon=True
        ).start()

    def stop(self, person: str) -> None:
        """Give up the page that somebody has under way."""
        with self._guard:
            stop = self._stops.get(person)
        if stop is not None:
            stop.set()

    def progress(self, person: str) -> Progress | None:
        """How far somebody's last inspection is; ``None`` where there was none."""
        with self._guard:
            return self._known.get(person)

    def _work(self, person: str, place: Path, engine: Engine, stop: threading.Event) -> None:
        try:
            material, missing = material_of(engine.model)

            def told(done: int, total: int) -> None:
                if stop.is_set():
                    raise CancelledError
                self._say(person, done=done, total=total, line="measuring")

            self._say(person, since=time.monotonic())
            with engine.calls("bulk", kind="inspect", stop=stop) as model:
                counted = _Counted(model)
                made = inspect_model(counted, material, missing=missing, samples=SAMPLES, quiet=True, told=told)
            self._say(person, line="drawing the page")
            made = dataclasses.replace(made, model=engine.model)
            write_page(place, inspection_page(made, engine.name))
            self._say(person, state="done", line="", page=place)
        except CancelledError:
            self._say(person, state="stopped", line="stopped")
        except Exception as error:
            self._say(person, state="failed", line=str(problem(error).message))
        finally:
            with self._guard:
                self._stops.pop(person, None)
            self._busy.release()

    def _say(self, person: str, **changes: object) -> None:
        with self._guard:
            if person in self._known:
                self._known[person] = dataclasses.replace(self._known[person], **changes)  # type: ignore[arg-type]


def page_of(folder: Path, engine: Engine) -> Path:
    """Where the page of one version of a model is kept for a person."""
    return folder / FOLDER / f"{engine.name}-{engine.version}.html"


def read_page(path: Path) -> str | None:
    """A page that was made; ``None`` where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return None


class _Counted(BatchedModel):
    """A served model for an inspection: its calls go to the engine, and a stand-in for its network counts them.

    The stand-in has the network's parameters and hooks of its own, so that nothing is hung onto the network that serves others.
    """

    def __init__(self, model: BatchedModel) -> None:
        super().__init__(model, model._queue, model._session)
        self.network = _StandIn(model.network)

    def _f(self, network: nn.Module, x: Tensor, *given: Any, **named: Any) -> Tensor:
        out = super()._f(network, x, *given, **named)
        self.network(x)
        return out


class _StandIn(nn.Module):
    """Has the parameters of a network and passes everything on unchanged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._of: Callable[..., object] = network.parameters

    def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Those of the network."""
        return self._of(recurse)

    def forward(self, x: Tensor) -> Tensor:
        """Nothing; what is called is seen by the hooks."""
        return torch.as_tensor(x)
