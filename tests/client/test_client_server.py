"""The client against the real application, over a real server on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="no httpx: pip install 'atonce[client]'")

from PIL import Image

import atonce
from atonce.client.client import Client
from atonce.client.errors import (
    BadRequestError,
    JobFailedError,
    NoConnectionError,
    NotFoundError,
)
from atonce.client.images import Images


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
    with Server(tmp_path_factory.mktemp("state")) as running:
        yield running


class Server:
    """The application in a thread of this process, on a port of its own."""

    def __init__(self, state: Path, **options: Any) -> None:
        import uvicorn

        from atonce.serving.app import create_app
        from atonce.serving.settings import ServeSettings

        settings = ServeSettings(
            **{"state": state, "models": ("digits", "fashion-mnist"), "rate": "", "backend": "eager"} | options
        )
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(create_app(settings), log_level="warning", lifespan="on")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        end = time.monotonic() + 120
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            assert time.monotonic() < end, "the server did not start in time"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as found:
        yield found


def test_models(client: Client) -> None:
    assert [model["id"] for model in client.models()] == ["digits", "fashion-mnist"]
    assert client.model("digits")["id"] == "digits"
    with pytest.raises(NotFoundError, match="request "):
        client.model("none/such")


def test_images_are_those_of_the_model_itself(client: Client, tmp_path: Path) -> None:
    made = client.generate(5, seed=11, first=2)
    assert (made.images.shape, made.images.dtype) == ((5, 1, 8, 8), np.uint8)
    direct = atonce.to_uint8(atonce.load("digits").sample(5, seed=11, first=2)).numpy()
    assert np.abs(made.images.astype(int) - direct).max() <= 1
    assert (made.seeds, made.indices, made.labels) == ([11] * 5, [2, 3, 4, 5, 6], None)
    assert (made.model, len(made), made.calls) == ("digits", 5, 1)
    assert np.array_equal(client.generate(5, seed=11, first=2).images, made.images)
    assert np.array_equal(np.asarray(made.pil()[3]), made.images[3, 0])
    paths = made.save(tmp_path / "out")
    assert np.array_equal(np.asarray(Image.open(paths[4])), made.images[4, 0])
    told = json.loads((tmp_path / "out" / "images.json").read_text())
    assert (told["seeds"], told["version"]) == ([11] * 5, made.version)
    drawn = client.generate()
    assert np.array_equal(client.generate(seeds=drawn.seeds).images, drawn.images)


def test_classes_by_name(client: Client) -> None:
    made = client.generate(labels=["Bag", "Coat", 3], seed=1, model="fashion-mnist")
    names = atonce.load("fashion-mnist").labels
    assert made.labels == [names.index("Bag"), names.index("Coat"), 3]
    assert made.names == ["Bag", "Coat", names[3]]
    assert made.images.shape == (3, 1, 28, 28)
    with pytest.raises(BadRequestError, match="unicorn") as caught:
        client.generate(labels="unicorn", model="fashion-mnist")
    assert caught.value.param == "labels"


def test_every_edit_works(client: Client) -> None:
    picture = client.generate(1, seed=3).images[0]
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    calls: dict[str, Callable[[], Images]] = {
        "inpaint": lambda: client.inpaint(picture, mask, seed=1, steps=2),
        "outpaint": lambda: client.outpaint(picture, size=(8, 12), seed=1, steps=2),
        "upscale": lambda: client.upscale(picture[:, ::2, ::2], 2, seed=1, steps=2),
        "restore": lambda: client.restore(picture, mask, factor=2, seed=1, steps=2),
        "stroke": lambda: client.stroke(picture, seed=1),
        "variations": lambda: client.variations(picture, 3, seed=1),
        "local": lambda: client.local(picture, mask, seed=1, steps=2),
        "denoise": lambda: client.denoise(picture, sigma=0.2),
        "interpolate": lambda: client.interpolate(seeds=[1, 2], n=4),
    }
    made = {name: call() for name, call in calls.items()}
    shapes = {name: len(images) for name, images in made.items()}
    assert shapes == dict.fromkeys(calls, 1) | {"variations": 3, "interpolate": 4}
    assert made["outpaint"].images.shape[2:] == (8, 12)
    assert np.array_equal(made["inpaint"].images[0][:, :, :4], picture[:, :, :4])
    assert np.array_equal(calls["inpaint"]().images, made["inpaint"].images)
    assert made["inpaint"].facts["kind"] == "inpaint"
    with pytest.raises(BadRequestError, match="grey"):
        client.colorize(picture)
    with pytest.raises(NotFoundError):
        client.edit("paint", image=picture)


def test_a_job_from_submission_to_file(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = client.submit_generate(300, seed=5)
    assert not job.ended
    path = job.wait(60, progress=True).save(tmp_path / "images.zip", progress=True)
    assert "300" in capsys.readouterr().err
    whole = Images.of_file(path)
    direct = client.generate(4, seed=5, first=290)
    assert np.array_equal(whole.images[290:294], direct.images)
    assert (whole.indices[290:294], whole.version) == (direct.indices, direct.version)
    arrays = client.submit_generate(300, seed=5, format="npz").wait(60).images()
    assert np.array_equal(arrays.images, whole.images)
    assert [each.id for each in client.jobs("done")][-1] == job.id
    again = client.job(job.id)
    assert (again.status, again.done, again.total) == ("done", 300, 300)
    assert again.cancel().status == "done"


def test_an_edit_as_a_job(client: Client) -> None:
    picture = client.generate(1, seed=3).images[0]
    many = client.submit_edit("variations", image=picture, n=70, seed=4).wait(60).images()
    few = client.variations(picture, 5, seed=4)
    assert np.array_equal(many.images[:5], few.images)


def test_a_job_is_cancelled(client: Client) -> None:
    job = client.submit_generate(100_000, seed=1, steps=20)
    assert job.cancel().status in ("cancelled", "cancelling")
    with pytest.raises(JobFailedError, match="is cancelled"):
        job.wait(30)


def test_a_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    with Server(tmp_path, models=("digits",)) as first, Client(first.url) as client:
        job = client.submit_generate(60_000, seed=2)
        port = first.socket.getsockname()[1]
    with pytest.raises(NoConnectionError), Client(f"http://127.0.0.1:{port}", timeout=0.5) as client:
        client.models()
    with Server(tmp_path, models=("digits",)) as second, Client(second.url) as client:
        again = client.job(job.id)
        assert again.status in ("queued", "running")
        again.cancel()


@pytest.mark.parametrize("n", [1, 4])
def test_many_threads_share_a_client(client: Client, n: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda seed: client.generate(n, seed=seed), range(16)))
    for seed, images in enumerate(made):
        assert np.array_equal(images.images, client.generate(n, seed=seed).images)
