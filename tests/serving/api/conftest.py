"""A service whose engines call the models directly: what the routes do can be tested without queues and buckets."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")

from fastapi.testclient import TestClient

import atonce
from atonce.serving.errors import ServiceError, not_found
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings

_loaded = functools.cache(atonce.load)


class DirectEngine:
    """What routes need of an engine; ``gate`` holds its answers back, ``problem`` replaces them."""

    def __init__(self, name: str, settings: ServeSettings, version: str = "1") -> None:
        self.model = _loaded(name)
        self.settings, self.name, self.version = settings, name, version
        self.gate = threading.Event()
        self.gate.set()
        self.problem: Exception | None = None
        self.asked: list[Any] = []
        self.futures: list[Future[Any]] = []
        self._thread = ThreadPoolExecutor(1)

    def submit(
        self, ask: Any, *, lane: str = "interactive", deadline: Any = None, progress: Any = None, kind: str = "generate"
    ) -> Future[Any]:
        if isinstance(self.problem, ServiceError):
            raise self.problem
        self.asked.append((ask, lane, deadline))
        future: Future[Any] = Future()
        self.futures.append(future)
        self._thread.submit(self._work, future, ask)
        return future

    def _work(self, future: Future[Any], ask: Any) -> None:
        self.gate.wait(20)
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self.problem is not None:
                raise self.problem
            future.set_result(
                self.model.sample(
                    ask.n,
                    seed=ask.seed,
                    first=ask.first,
                    seeds=None if ask.seeds is None else list(ask.seeds),
                    labels=None if ask.labels is None else list(ask.labels),
                    sigmas=list(ask.sigmas),
                    guidance=ask.guidance,
                    ema=ask.ema,
                )
            )
        except Exception as problem:
            future.set_exception(problem)

    @contextlib.contextmanager
    def calls(self, lane: str = "interactive", deadline: Any = None, kind: str = "edit", stop: Any = None) -> Iterator[Any]:
        if self.problem is not None:
            raise self.problem
        self.gate.wait(20)
        yield self.model

    def status(self) -> Any:
        return EngineStatus(self.name, self.version, "eager", (1, 2), 100.0, 0, 0.0, 2.0, True, 0, 0, 0)


class DirectHost:
    def __init__(self, engine: DirectEngine) -> None:
        self.own = engine
        self.done: list[Any] = []

    def engine(self, caller: str, version: str | None = None) -> DirectEngine:
        if version not in (None, self.own.version):
            raise not_found(f"{self.own.name} has no version {version!r}: it has {self.own.version}", "version")
        return self.own

    def versions(self) -> list[dict[str, str]]:
        return [{"version": self.own.version, "role": "stable"}]

    def load(self, source: str, version: str | None = None, canary: float | None = None) -> None:
        self.done.append(("load", source, version, canary))
        atonce.load(source)

    def promote(self) -> None:
        raise ServiceError(409, "no_canary", "there is no canary to promote")

    def roll_back(self) -> None:
        self.done.append(("roll_back",))


class DirectHosts:
    def __init__(self, settings: ServeSettings, *names: str) -> None:
        self._hosts = {name: DirectHost(DirectEngine(name, settings)) for name in names}
        self.default = names[0]
        self.ready = True

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def names(self) -> list[str]:
        return list(self._hosts)

    def host(self, name: str) -> DirectHost:
        if name not in self._hosts:
            raise not_found(f"there is no model {name[:80]!r}: served are {', '.join(self._hosts)}", "model")
        return self._hosts[name]

    def statuses(self) -> list[Any]:
        return [host.own.status() for host in self._hosts.values()]


@pytest.fixture
def serve(tmp_path: Any) -> Iterator[Any]:
    """Starts an application over digits and Fashion-MNIST; gives its client, with ``hosts`` beside."""
    from atonce.serving.app import create_app

    with contextlib.ExitStack() as stack:

        def start(*names: str, raise_server_exceptions: bool = False, **options: Any) -> TestClient:
            settings = ServeSettings(**({"state": tmp_path / "state", "job_workers": 0, "rate": ""} | options))
            hosts = DirectHosts(settings, *(names or ("digits", "fashion-mnist")))
            app = create_app(settings, hosts)  # type: ignore[arg-type]
            client = stack.enter_context(TestClient(app, raise_server_exceptions=raise_server_exceptions))
            client.hosts = hosts  # type: ignore[attr-defined]
            return client

        yield start


@pytest.fixture
def listen(tmp_path: Any) -> Iterator[Any]:
    """Starts the same application behind a real server on loopback; gives its address and its hosts."""
    import uvicorn

    from atonce.serving.app import create_app
    from atonce.serving.protocol import protocol_for

    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(*names: str, **options: Any) -> tuple[str, DirectHosts]:
        settings = ServeSettings(**({"state": tmp_path / "state", "job_workers": 0, "rate": ""} | options))
        hosts = DirectHosts(settings, *(names or ("digits", "fashion-mnist")))
        app = create_app(settings, hosts)  # type: ignore[arg-type]
        config = uvicorn.Config(app, port=0, http=protocol_for(settings), ws="none", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        until = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}", hosts

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def client(serve: Any) -> TestClient:
    """The usual application."""
    return serve()


def _file(array: Any, form: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array, dtype=np.uint8))).save(
        content, form, **options
    )
    return content.getvalue()


@pytest.fixture(scope="session")
def file() -> Any:
    """An array or picture as the content of a file."""
    return _file


@pytest.fixture(scope="session")
def b64() -> Any:
    """An array or picture as base64 of a file."""
    return lambda array, form="PNG", **options: base64.b64encode(_file(array, form, **options)).decode()


@pytest.fixture(scope="session")
def digit() -> Any:
    """One real digit, uint8 [8, 8]."""
    from sklearn.datasets import load_digits

    return (load_digits().images[3] * 255 / 16).round().astype(np.uint8)


@pytest.fixture(scope="session")
def opened() -> Any:
    """The image in base64, or in bytes, as an array."""

    def read(content: str | bytes) -> Any:
        raw = base64.b64decode(content) if isinstance(content, str) else content
        return np.asarray(Image.open(io.BytesIO(raw)))

    return read
