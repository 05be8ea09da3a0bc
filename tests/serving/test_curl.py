"""What a user does with the program curl: the documented call, an edit, a job, and what a mistake looks like."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")

from PIL import Image

from atonce.core.version import VERSION

if shutil.which("curl") is None:
    pytest.skip("no curl on this machine", allow_module_level=True)

SERVING = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of digits, started as a user starts it."""
    state = tmp_path_factory.mktemp("state")
    words = ["serve", "digits", "--port", "0", "--json", "--backend", "eager", "--state", str(state), "--threads", "1"]
    with subprocess.Popen([sys.executable, "-m", "atonce", *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
            assert process.wait(120) == 0


def curl(*words: str, folder: Path | None = None) -> bytes:
    done = subprocess.run(["curl", "-sS", "--max-time", "120", *words], capture_output=True, cwd=folder, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_headers(*words: str) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of an answer."""
    head, _, body = curl("-i", *words).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body)


def test_the_documented_call(url: str, tmp_path: Path) -> None:
    line = re.search(r"^    (curl .*)$", SERVING.read_text(encoding="utf-8"), re.M)
    assert line is not None
    words = [word.replace("localhost:8000", url.removeprefix("http://")) for word in shlex.split(line.group(1))[1:]]
    curl(*words, folder=tmp_path)
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.format == "PNG"
        assert picture.width * picture.height >= 16 * 8 * 8
    first = (tmp_path / "digits.png").read_bytes()
    curl(*words, folder=tmp_path)
    assert (tmp_path / "digits.png").read_bytes() == first


def test_an_answer_names_version_and_backend(url: str) -> None:
    status, headers, answer = with_headers(f"{url}/v1/generate", "--json", '{"n": 2, "seed": 7}')
    assert (status, answer["n"], answer["seed"]) == (200, 2, 7)
    assert headers["x-backend"] == "eager"
    assert headers["x-model-version"] == answer["version"]
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["data"]))) as picture:
        assert picture.size == (8, 8)


def test_an_edit_of_a_picture_from_a_file(url: str, tmp_path: Path) -> None:
    pixels = np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1))
    Image.fromarray(pixels).save(tmp_path / "in.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["-F", "image=@in.png", "-F", "mask=@mask.png", "-F", "seed=1", "-H", "Accept: image/png", "-o", "out.png"]
    curl(f"{url}/v1/edits/inpaint", *words, folder=tmp_path)
    with Image.open(tmp_path / "out.png") as picture:
        assert np.array_equal(np.asarray(picture)[4:], pixels[4:]), "what is not masked stays"


def test_a_job_from_its_submission_to_its_file(url: str, tmp_path: Path) -> None:
    wanted = {"kind": "generate", "request": {"n": 100, "seed": 3, "format": "npz"}}
    status, headers, job = with_headers(f"{url}/v1/jobs", "--json", json.dumps(wanted), "-H", "Idempotency-Key: once")
    assert (status, headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert with_headers(f"{url}/v1/jobs", "--json", json.dumps(wanted), "-H", "Idempotency-Key: once")[2]["id"] == job["id"]
    for _ in range(6):
        ended = json.loads(curl(f"{url}/v1/jobs/{job['id']}?wait=20"))
        if ended["status"] not in ("queued", "running"):
            break
    assert ended["status"] == "done", ended
    curl(f"{url}/v1/jobs/{job['id']}/result", "-o", "result.npz", folder=tmp_path)
    assert np.load(tmp_path / "result.npz")["arr_0"].shape == (100, 8, 8, 1)


def test_a_mistake_is_one_line_that_helps(url: str) -> None:
    status, headers, answer = with_headers(f"{url}/v1/generate", "--json", '{"n": 0}')
    assert (status, answer["error"]["param"]) == (400, "n")
    assert "\n" not in answer["error"]["message"]
    assert answer["request_id"] == headers["x-request-id"]
    status, _, answer = with_headers(f"{url}/v1/nothing")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    assert json.loads(curl(f"{url}/healthz"))["atonce"] == VERSION
