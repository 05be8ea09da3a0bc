"""The real thing: real engines behind the routes, and the verb as a user starts it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import atonce
from atonce.cli import main
from atonce.serving.app import create_app
from atonce.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings = ServeSettings(
        models=("digits", "clothes=fashion-mnist"),
        state=tmp_path_factory.mktemp("state"),
        backend="eager",
        max_batch=16,
        job_workers=0,
        rate="",
        threads=1,
        reload_seconds=0,
        queue_seconds=60,
    )
    with TestClient(create_app(settings)) as client:
        yield client


def test_same_request_same_bytes_whatever_else_runs(client):
    wanted = [{"model": "clothes", "n": 1 + i % 5, "seed": i, "steps": 1 + i % 3, "response": "binary"} for i in range(12)]
    alone = [client.post("/v1/generate", json=each).content for each in wanted]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda each: client.post("/v1/generate", json=each).content, wanted))
    assert together == alone


def test_images_are_those_of_the_model(client, opened):
    told = client.post("/v1/generate", json={"model": "clothes", "n": 5, "seed": 3, "steps": 2, "labels": "bag"}).json()
    found = np.stack([opened(image["data"]) for image in told["images"]])
    right = atonce.to_uint8(atonce.load("fashion-mnist").sample(5, seed=3, steps=2, labels=8))[:, 0].numpy()
    assert np.abs(found.astype(int) - right).max() <= 1
    assert (found != right).mean() < 1e-3
    assert told["seconds"]["network"] > 0
    assert told["seconds"]["queue"] > 0


def test_every_edit_goes_through_the_queue(client, digit, b64, opened):
    before = {each["name"]: each for each in [vars_of(s) for s in client.app.state.service.hosts.statuses()]}["digits"]["calls"]
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    wanted = {"image": b64(digit), "mask": b64(mask), "n": 2, "seed": 5, "steps": 4}
    told = client.post("/v1/edits/inpaint", json=wanted).json()
    found = np.stack([opened(image["data"]) for image in told["images"]])
    x = torch.from_numpy(digit.copy()).float()[None, None].expand(2, 1, 8, 8) / 127.5 - 1
    edited = atonce.edit.inpaint(atonce.load("digits"), x, torch.from_numpy(mask > 0), seed=5, steps=4)
    assert np.abs(found.astype(int) - atonce.to_uint8(edited)[:, 0].numpy()).max() <= 1
    after = {each["name"]: each for each in [vars_of(s) for s in client.app.state.service.hosts.statuses()]}["digits"]["calls"]
    assert after == before + 4
    ends = {"images": [b64(digit), b64(digit.T.copy())], "n": 3, "iterations": 20}
    assert client.post("/v1/edits/interpolate", json=ends).status_code == 200


def vars_of(status) -> dict:
    return {"name": status.name, "calls": status.calls}


def test_metrics_know_the_models(client):
    client.post("/v1/generate", json={"n": 3})
    text = client.get("/metrics").text
    assert 'atonce_model_info{backend="eager",model="clothes"' in text
    assert 'atonce_images_total{kind="generate",model="digits"' in text
    assert "atonce_ready 1.0" in text


# ---- the verb


def test_help_needs_no_torch():
    code = "import sys; from atonce.cli import main; main(['serve', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Example: atonce serve digits fashion-mnist" in done.stdout
    assert "--queue-seconds" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve", "there is nothing to serve: name a model"),
        ("serve digits --port 70000", "port is 70000, should be less than or equal to 65535 (--port)"),
        ("serve digits --queue-seconds 0", "queue_seconds is 0.0, should be greater than 0"),
        ("serve digits --host 0.0.0.0 --port 0", "there are no keys"),
        ("serve digits --keys nowhere.json", "cannot read the keys"),
        ("serve digits --rate often --port 0", "often"),
        ("serve digits digits --port 0", "two models are called digits"),
        ("serve no-such-model --port 0", "no-such-model"),
    ],
)
def test_bad_settings_are_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("atonce.serving.logs.set_up", lambda *_: None)  # it is for a whole process
    assert main(words.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("atonce")]) == 1
    assert said in error[-1]


def test_the_environment_sets_what_words_do_not(monkeypatch, tmp_path):
    from atonce.verbs import serve as verb

    found = []
    monkeypatch.setenv("ATONCE_SERVE_PORT", "1234")
    monkeypatch.setenv("ATONCE_SERVE_MAX_IMAGES", "7")
    monkeypatch.setattr("atonce.serving.run.serve", lambda settings, say, **_: found.append((settings, say)) or 0)
    assert verb.serve(("digits",), max_images=9, reload_seconds=0.0, job_workers=0, rate="") == 0
    settings = found[0][0]
    assert (settings.port, settings.max_images, settings.reload_seconds, settings.job_workers) == (1234, 9, 0.0, 0)
    assert settings.rate == ""
    assert settings.models == ("digits",)
    monkeypatch.setenv("ATONCE_SERVE_PORT", "many")
    with pytest.raises(atonce.core.errors.InputError, match="port is 'many'"):
        verb.serve(("digits",))


def test_a_user_starts_a_server_calls_it_and_stops_it(tmp_path):
    words = [sys.executable, "-m", "atonce", "serve", "digits", "--port", "0", "--json", "--backend", "eager"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATONCE_SERVE_STATE": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            body = json.dumps({"n": 2, "seed": 1}).encode()
            wanted = urllib.request.Request(f"{url}/v1/generate", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(wanted, timeout=30) as answer:
                assert json.load(answer)["n"] == 2
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            rest, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            assert rest == "", "nothing but the address goes to the output"
            assert time.monotonic() - begun < 30
        finally:
            process.kill()
