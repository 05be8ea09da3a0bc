"""The client against servers that fail on purpose: what is tried again, what is told, what a picture may be."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="no httpx: pip install 'atonce[client]'")

import httpx
from PIL import Image

from atonce.client.client import Client
from atonce.client.errors import (
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConflictError,
    JobFailedError,
    NoConnectionError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    TimedOutError,
    TooLargeError,
)
from atonce.client.images import picture_text
from atonce.core.errors import DataError, InputError

# ---- a server that answers as a test says


class Scripted(httpx.BaseTransport):
    """Answers requests one after the other: with an answer, an exception, or what a function makes of the request."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


def scripted(*answers: Any, **options: Any) -> tuple[Client, Scripted, list[float]]:
    """A client of such a server, the server, and the pauses that the client made."""
    server, pauses = Scripted(*answers), []
    client = Client("http://server", transport=server, **options)
    client._transport.sleep = pauses.append
    return client, server, pauses


def refusal(status: int, code: str = "code", message: str = "what is wrong", **headers: str) -> httpx.Response:
    body = {"error": {"message": message, "type": "t", "code": code, "param": "n"}, "request_id": "r1"}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def images_answer(request: httpx.Request) -> httpx.Response:
    """What a server answers to a request for images, made here from its body."""
    import base64
    import io

    body = json.loads(request.content)
    n = body.get("n", 1)
    content = io.BytesIO()
    np.savez(content, arr_0=np.full((n, 2, 2, 1), body.get("seed", 0) % 251, np.uint8))
    entries = [{"index": i, "seed": body["seed"], "label": None, "name": None, "data": None} for i in range(n)]
    told = {"kind": "generate", "model": "m", "version": "3", "sigmas": [80.0], "calls": 1, "n": n, "format": "npz"}
    data = base64.b64encode(content.getvalue()).decode()
    return httpx.Response(200, json={**told, "images": entries, "data": data, "seconds": {"queue": 0.0}, "request_id": "r"})


def test_the_same_seed_goes_with_every_try() -> None:
    client, server, pauses = scripted(httpx.ConnectError("no"), refusal(503, Retry_After="2"), refusal(429), images_answer)
    made = client.generate(3)
    bodies = server.bodies()
    assert len(bodies) == 4
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["seed"] == made.seeds[0]
    assert bodies[0] | {"seed": 0} == {"n": 3, "seed": 0, "format": "npz", "response": "json"}
    assert 0.1 <= pauses[0] <= 0.13
    assert 2.0 <= pauses[1] <= 2.5, "the server's own time counts"
    assert 0.4 <= pauses[2] <= 0.5
    assert client.generate(3).seeds != made.seeds


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, BadRequestError),
        (409, ConflictError),
        (413, TooLargeError),
        (500, ServerError),
        (504, ServerError),
    ],
)
def test_errors_are_typed_and_not_tried_again(status: int, kind: type[ClientError]) -> None:
    client, server, pauses = scripted(refusal(status))
    with pytest.raises(kind, match=r"^what is wrong \(request r1\)$") as caught:
        client.generate(1)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, "code", "n")
    assert caught.value.request_id == "r1"
    assert (len(server.requests), pauses) == (1, [])


def test_trying_again_ends_with_the_time_and_the_last_error() -> None:
    client, server, pauses = scripted(refusal(429, "too_many_jobs", Retry_After="30"), timeout=20.0)
    with pytest.raises(RateLimitedError) as caught:
        client.submit_generate(10)
    assert caught.value.retry_after == 30.0
    assert (len(server.requests), pauses) == (1, []), "there is no sense in waiting for what comes too late"
    client, server, _ = scripted(httpx.ConnectError("refused"), timeout=0.3)
    client._transport.sleep = time.sleep
    begun = time.monotonic()
    with pytest.raises(NoConnectionError, match="http://server cannot be reached: refused"):
        client.models()
    assert time.monotonic() - begun < 2
    assert 2 <= len(server.requests) <= 3


def test_a_slow_answer_ends_with_the_time() -> None:
    client, server, _ = scripted(httpx.ReadTimeout("slow"))
    with pytest.raises(TimedOutError, match="did not answer in time"):
        client.models()
    assert len(server.requests) == 1, "the time of a call is over once"


def test_a_dripping_answer_ends_with_the_time() -> None:
    class Drip(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(200):
                time.sleep(0.02)
                yield b" "

    client, _, _ = scripted(lambda request: httpx.Response(200, stream=Drip()), timeout=0.3)
    begun = time.monotonic()
    with pytest.raises(TimedOutError):
        client.models()
    assert time.monotonic() - begun < 2


def test_what_is_no_atonce_server_is_said_to_be_none() -> None:
    client, _, _ = scripted(httpx.Response(200, text="<html>hello</html>"))
    with pytest.raises(ClientError, match="is it an atonce server"):
        client.models()
    client, _, _ = scripted(httpx.Response(418, text="<html>teapot</html>", headers={"X-Request-ID": "r9"}))
    with pytest.raises(BadRequestError, match=r"answered with status 418 \(request r9\)"):
        client.models()


def test_a_submitted_job_has_a_word_so_that_a_retry_makes_no_second_one() -> None:
    info = {"id": "job_1", "status": "queued", "done": 0, "total": 5}
    client, server, _ = scripted(httpx.ReadError("lost"), httpx.Response(202, json=info))
    job = client.submit_generate(5, format="npz")
    words = {request.headers["Idempotency-Key"] for request in server.requests}
    assert len(server.requests) == 2
    assert len(words) == 1
    assert server.bodies()[0] == server.bodies()[1]
    assert (job.id, job.status, job.total) == ("job_1", "queued", 5)
    client.submit_generate(5)
    assert server.requests[-1].headers["Idempotency-Key"] not in words


def test_a_failed_job_is_an_error_of_its_own() -> None:
    info = {"id": "job_1", "status": "running", "done": 2, "total": 5, "result": None}
    failed = {**info, "status": "failed", "error": {"code": "storage", "message": "the disk is full"}}
    client, server, _ = scripted(
        httpx.Response(202, json=info), httpx.Response(200, json=info), httpx.Response(200, json=failed)
    )
    job = client.submit_generate(5)
    with pytest.raises(JobFailedError, match="job_1 is failed: the disk is full") as caught:
        job.wait()
    assert caught.value.code == "storage"
    assert server.requests[-1].url.params["wait"] == "20"
    with pytest.raises(InputError, match="has no result"):
        job.save("nowhere.zip")
    client, _, _ = scripted(httpx.Response(202, json=info), httpx.Response(200, json=info))
    with pytest.raises(TimedOutError, match="it goes on"):
        client.submit_generate(5).wait(0.2)


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    import hashlib

    content = bytes(range(256)) * 40
    digest = hashlib.sha256(content).hexdigest()
    result = {"bytes": len(content), "sha256": digest, "suffix": ".zip", "url": "", "media": "application/zip"}
    info = {"id": "job_1", "status": "done", "done": 5, "total": 5, "result": result}

    class Breaks(httpx.SyncByteStream):
        def __init__(self, part: bytes) -> None:
            self.part = part

        def __iter__(self) -> Iterator[bytes]:
            yield self.part
            raise httpx.ReadError("broke")

    def resumed(request: httpx.Request) -> httpx.Response:
        assert request.headers["If-Range"] == f'"{digest}"'
        start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        return httpx.Response(206, content=content[start:])

    client, server, _ = scripted(httpx.Response(200, json=info), httpx.Response(200, stream=Breaks(content[:1000])), resumed)
    path = client.job("job_1").save(tmp_path)
    assert path == tmp_path / "job_1.zip"
    assert path.read_bytes() == content
    assert server.requests[-1].headers["Range"] == "bytes=1000-"

    damaged = content[:-1] + b"x"
    client, _, _ = scripted(httpx.Response(200, json=info), httpx.Response(200, content=damaged))
    with pytest.raises(ClientError, match="came damaged"):
        client.job("job_1").save(path)
    assert path.read_bytes() == content, "the old file stays"
    assert [each.name for each in tmp_path.iterdir()] == ["job_1.zip"]


# ---- what a picture may be


def pixels(text: str) -> np.ndarray:
    import base64
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colour = np.stack([grey, grey.T, 255 - grey])
    assert np.array_equal(pixels(picture_text(grey)), grey)
    assert np.array_equal(pixels(picture_text(grey[None])), grey)
    assert np.array_equal(pixels(picture_text(colour)), np.moveaxis(colour, 0, 2))
    assert np.array_equal(pixels(picture_text(Image.fromarray(grey))), grey)
    assert np.array_equal(pixels(picture_text(grey.astype(np.float32) / 127.5 - 1)), grey)
    assert np.array_equal(pixels(picture_text(grey > 100)), (grey > 100) * 255)
    Image.fromarray(grey).save(tmp_path / "in.png")
    content = (tmp_path / "in.png").read_bytes()
    assert picture_text(content) == picture_text(tmp_path / "in.png") == picture_text(str(tmp_path / "in.png"))


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), r"image has shape \(2, 3, 4, 5\)"),
        (np.zeros((4, 8, 8), np.uint8), r"image has shape \(4, 8, 8\)"),
        (np.zeros((8, 8), np.int64), "image is an array of int64"),
        (np.full((8, 8), 7.0), "image has numbers outside of -1 to 1"),
        (np.full((8, 8), np.nan), "image has numbers outside of -1 to 1"),
        (3, r"image has shape \(\)"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        picture_text(picture)


def test_a_picture_that_cannot_be_read_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    client, server, _ = scripted(images_answer)
    with pytest.raises(DataError, match="mask .*none.png cannot be read: No such file"):
        client.inpaint(np.zeros((8, 8), np.uint8), tmp_path / "none.png")
    with pytest.raises(InputError, match="one of these"):
        client.interpolate()
    assert server.requests == []


def test_an_edit_sends_its_fields_and_a_seed() -> None:
    client, server, _ = scripted(images_answer)
    picture = np.zeros((8, 8), np.uint8)
    client.inpaint([picture, picture], picture > 0, labels=(1, 2), sigmas=(3.0, 1.0), seed=5)
    client.upscale(picture, 2)
    first, second = server.bodies()
    text = picture_text(picture)
    common = {"fit": "none", "format": "npz", "response": "json"}
    assert first == {"image": [text, text], "mask": text, "labels": [1, 2], "sigmas": [3.0, 1.0], "seed": 5, **common}
    assert server.requests[0].url.path == "/v1/edits/inpaint"
    assert second == {"image": text, "factor": 2, "seed": second["seed"], **common}


# ---- the client itself


def test_addresses_and_keys_are_checked() -> None:
    with pytest.raises(InputError, match="does not begin with http"):
        Client("127.0.0.1:8000")
    with pytest.raises(InputError, match="the key has characters"):
        Client(key="atonce_ä")
    with pytest.raises(InputError, match="timeout is 0"):
        Client(timeout=0)
    client, server, _ = scripted(httpx.Response(200, json={"data": []}), key=" atonce_1_x\n".strip())
    client.models()
    assert server.requests[0].headers["Authorization"] == "Bearer atonce_1_x"


def test_importing_it_brings_neither_torch_nor_a_web_framework() -> None:
    code = (
        "import sys, atonce; c = atonce.Client(); c.close(); "
        "print(sorted({'torch', 'fastapi', 'starlette', 'pydantic', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_httpx_the_extra_is_named() -> None:
    code = "import sys; sys.modules['httpx'] = None\nimport atonce\n"
    code += "try: atonce.Client()\nexcept ImportError as e: print(type(e).__name__, e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "MissingExtraError atonce.Client needs httpx: pip install 'atonce[client]'", done.stderr


# ---- numbers of numpy and PyTorch


def test_numbers_of_numpy_are_numbers() -> None:
    client, server, _ = scripted(images_answer)
    client.generate(np.int64(2), seed=np.uint64(5), labels=np.array([1, 2]), sigmas=np.array([80.0, 0.5], np.float64))
    client.generate(2, seeds=np.array([3, 4]), seed=np.int32(1), guidance=np.float32(1.5), labels=[np.int64(1), "bag"])
    one, two = server.bodies()
    assert one == {"n": 2, "seed": 5, "labels": [1, 2], "sigmas": [80.0, 0.5], "format": "npz", "response": "json"}
    assert (two["seeds"], two["seed"], two["guidance"], two["labels"]) == ([3, 4], 1, 1.5, [1, "bag"])


def test_numbers_of_pytorch_are_numbers() -> None:
    torch = pytest.importorskip("torch")
    client, server, _ = scripted(images_answer)
    client.generate(torch.tensor(2), seed=5, labels=torch.tensor([1, 2]))
    assert server.bodies()[0] | {"format": ""} == {"n": 2, "seed": 5, "labels": [1, 2], "format": "", "response": "json"}


def test_numbers_of_numpy_in_an_edit() -> None:
    client, server, _ = scripted(images_answer)
    picture = np.zeros((2, 2), np.uint8)
    client.edit("outpaint", image=picture, size=np.array([4, 4]), place=(np.int64(1), 1), seed=np.int64(3), steps=np.int8(2))
    body = server.bodies()[0]
    assert (body["size"], body["place"], body["seed"], body["steps"]) == ([4, 4], [1, 1], 3, 2)
    assert isinstance(body["image"], str)


@pytest.mark.parametrize("wrong", [b"12", object(), {"a": 1}, {1, 2}, np.complex128(1), np.array([1 + 2j])])
def test_what_is_no_number_is_one_line(wrong: Any) -> None:
    client, server, _ = scripted(images_answer)
    with pytest.raises(InputError, match="^labels is a [a-z0-9]+: give numbers, texts, lists or arrays of them$"):
        client.generate(1, seed=1, labels=wrong)
    assert server.requests == []
