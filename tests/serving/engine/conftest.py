"""Small models with weights that matter, and a network whose speed and moments the test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.model import ConsistencyModel
from atonce.model_config import Guidance, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.serving import roles
from atonce.serving.backends import Backend
from atonce.serving.buckets import Buckets, Rows
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.hosts import Hosts
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings


def tiny(
    kind: str = "consistency",
    labels: int = 3,
    guidance: Guidance | None = None,
    ema: tuple[str, ...] = (),
    sampler: str = "auto",
    seed: int = 0,
) -> ConsistencyModel:
    """A small U-Net whose output depends on all its inputs."""
    told = guidance is not None and guidance.form == "embedded"
    network = UNetConfig(
        size=8,
        image_channels=1,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        attention=(4,),
        labels=labels,
        guidance=told,
        second_time=kind == "flow_map",
    )
    known = {
        "denoiser": Preconditioning("edm", 0.5, 0.0),
        "consistency": Preconditioning("boundary", 0.5, 0.002),
        "flow_map": Preconditioning("flow", 0.5, 0.0, "time", True),
    }
    config = ModelConfig(
        network,
        known[kind],
        kind=kind,  # type: ignore[arg-type]
        guidance=guidance,
        sampler=sampler,  # type: ignore[arg-type]
    )
    model = ConsistencyModel(config)

    def states(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(value.shape, generator=generator)
            * (0.5 / max(value[0].numel(), 1) ** 0.5 if value.dim() > 1 else 0.3)
            for name, value in model.network.state_dict().items()
        }

    model.network.load_state_dict(states(seed))
    return ConsistencyModel(config, model.network, {name: states(i + 100) for i, name in enumerate(ema)})


class Clock:
    """Time that passes when the test, or the network, says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A network that takes ``per_row`` seconds of the clock for each row, and waits for leave where ``held``."""

    def __init__(self, clock: Clock, per_row: float = 0.01, sizes: tuple[int, ...] = (1, 2, 4, 8), held: bool = False) -> None:
        self.clock, self.per_row, self.sizes, self.held = clock, per_row, sizes, held
        self.slower = 1.0
        self.sizes_seen: list[int] = []
        self.seen: list[Rows] = []
        self.broken: Callable[[Rows], Tensor | None] | None = None
        self.entered, self.leave = threading.Semaphore(0), threading.Semaphore(0)
        self._warm = False

    def call(self, rows: Rows) -> Tensor:
        if not self._warm:  # the engine's own test
            self._warm = True
            return rows.x * 0.0
        self.sizes_seen.append(len(rows))
        self.seen.append(rows)
        self.entered.release()
        if self.held:
            assert self.leave.acquire(timeout=60)
        self.clock.now += self.per_row * self.slower * len(rows)
        found = self.broken(rows) if self.broken is not None else None
        return rows.x * 0.01 if found is None else found

    def step(self, count: int = 1) -> None:
        """Let calls end, each once it has begun."""
        for _ in range(count):
            self.wait()
            self.leave.release()

    def wait(self) -> None:
        """Until a call has begun."""
        assert self.entered.acquire(timeout=60)

    def free(self) -> None:
        """Let all calls pass from now on."""
        self.held = False
        self.leave.release()

    def backend(self, model: ConsistencyModel) -> Backend:
        buckets = Buckets(self.sizes, tuple(self.per_row * size for size in self.sizes), (self.sizes,), torch.zeros(1))
        return Backend("fake", self.call, buckets, buckets)


class Log:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: self.events.append((name, *values))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == name]


class Quick:
    """An engine that computes nothing, and counts what it is told to have done."""

    made: list[Quick]

    def __init__(self, model: ConsistencyModel, settings: ServeSettings, *, name: str, version: str, **_: Any) -> None:
        self.model, self.version, self.running, self.stopped_with = model, version, False, None
        self.now = EngineStatus(name, version, "quick", (1,), 1.0, 0, 0.0, 2.0, False, 0, 0, 0)
        Quick.made.append(self)

    def start(self) -> None:
        weights = torch.cat([value.flatten() for value in self.model.network.parameters()])
        if not bool(weights.isfinite().all()):
            raise ServiceError(500, "broken", f"{self.version} gives images that are not finite: it cannot serve")
        self.running = True

    def stop(self, seconds: float = 0.0) -> None:
        self.running, self.stopped_with = False, seconds

    def status(self) -> EngineStatus:
        return replace(self.now, running=self.running)

    def count(self, **counts: int) -> None:
        self.now = replace(self.now, **counts)


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """Starts engines; they are stopped in the end. Without other settings nothing is refused for want of time."""
    running: list[Engine] = []

    def start(model: ConsistencyModel, **options: Any) -> Engine:
        own = {name: options.pop(name) for name in ("clock", "prepare", "observer", "turns", "version") if name in options}
        settings = ServeSettings(**{"backend": "eager", "max_batch": 8, "queue_seconds": 1e6, **options})
        made = Engine(model, settings, name="tiny", **own)
        running.append(made)
        made.start()
        return made

    yield start
    for each in running:
        each.stop(0)


@pytest.fixture
def faked(engine: Callable[..., Engine]) -> Callable[..., tuple[Engine, Fake]]:
    """Starts an engine over a :class:`Fake` network; gives both."""

    def start(model: ConsistencyModel | None = None, **options: Any) -> tuple[Engine, Fake]:
        clock = Clock()
        network = {name: options.pop(name) for name in ("per_row", "sizes", "held") if name in options}
        fake = Fake(clock, **network)
        found = engine(model or tiny(), clock=clock, prepare=fake.backend, **{"queue_seconds": 2.0, **options})
        return found, fake

    return start


@pytest.fixture(name="tiny")
def _tiny() -> Callable[..., ConsistencyModel]:
    return tiny


@pytest.fixture(name="Log")
def _log() -> type[Log]:
    return Log


@pytest.fixture(name="Quick")
def _quick() -> type[Quick]:
    Quick.made = []
    return Quick


@pytest.fixture(name="Clock")
def _clock() -> type[Clock]:
    return Clock


@pytest.fixture
def saved(tmp_path: Path, tiny: Any) -> Callable[..., str]:
    """Writes a model folder with other weights each; gives its path."""

    def save(name: str, seed: int = 0, broken: bool = False, **told: Any) -> str:
        model = tiny(seed=seed, **told)
        if broken:
            with torch.no_grad():
                next(model.network.parameters()).fill_(float("nan"))
        model.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def hosts(Quick: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    """Starts hosts, of engines that compute nothing where no others are given; they are stopped in the end."""
    monkeypatch.setattr(roles, "GRACE", 0.0)
    started: list[Hosts] = []

    def start(*models: str, clock: Clock | None = None, engine_of: Any = Quick, observer: Any = None, **options: Any) -> Hosts:
        own = {"models": models, "device": "cpu", "backend": "eager", "max_batch": 2, "reload_seconds": 0.0}
        settings = ServeSettings(**{**own, "state": tmp_path / "serve-state", **options})
        made = Hosts(settings, observer, clock=clock or Clock(), engine_of=engine_of)
        started.append(made)
        made.start()
        return made

    yield start
    for each in started:
        each.stop()
