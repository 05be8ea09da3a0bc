"""``POST /v1/generate``: the images are the model's own, said in full, in the form that was asked for."""

from __future__ import annotations

import io
import time
import zipfile

import numpy as np
import pytest

import atonce
from atonce.serving.errors import overloaded
from atonce.serving.schemas import Answer


def expected(name: str, n: int, **options) -> np.ndarray:
    images = atonce.to_uint8(atonce.load(name).sample(n, **options)).numpy()
    return images[:, 0]


def test_images_are_those_of_the_model(client, opened):
    answer = client.post("/v1/generate", json={"model": "fashion-mnist", "n": 3, "seed": 7, "first": 2, "steps": 2})
    assert answer.status_code == 200
    assert answer.headers["x-model-version"] == "1"
    told = Answer.model_validate(answer.json())
    assert (told.model, told.version, told.kind, told.n, told.seed, told.calls) == ("fashion-mnist", "1", "generate", 3, 7, 2)
    assert told.request_id == answer.headers["x-request-id"]
    right = expected("fashion-mnist", 3, seed=7, first=2, steps=2)
    for i, image in enumerate(told.images):
        assert (opened(image.data) == right[i]).all()
        assert image.index == 2 + i
        assert image.name == atonce.load("fashion-mnist").labels[image.label]


def test_an_image_can_be_made_again_by_what_its_answer_says(client):
    told = client.post("/v1/generate", json={"model": "fashion-mnist", "n": 4}).json()
    third = told["images"][2]
    again = {"model": "fashion-mnist", "seed": third["seed"], "first": third["index"], "labels": third["label"]}
    found = client.post("/v1/generate", json=again | {"sigmas": told["sigmas"]}).json()
    assert found["images"][0]["data"] == third["data"]


def test_the_same_request_gives_the_same_bytes(client):
    for sent in ("binary", "grid"):
        wanted = {"n": 3, "seed": 1, "response": sent}
        assert client.post("/v1/generate", json=wanted).content == client.post("/v1/generate", json=wanted).content


def test_labels_by_name_number_and_one_for_each(client):
    told = client.post("/v1/generate", json={"model": "fashion-mnist", "labels": ["Dress", 8, "sandal"], "seed": 0}).json()
    assert [image["label"] for image in told["images"]] == [3, 8, 5]
    told = client.post("/v1/generate", json={"model": "fashion-mnist", "n": 2, "labels": "bag"}).json()
    assert [image["name"].lower() for image in told["images"]] == ["bag", "bag"]


def test_one_seed_for_each_image(client, opened):
    told = client.post("/v1/generate", json={"seeds": [3, -4, 1 << 62]}).json()
    assert told["seed"] is None
    assert [image["seed"] for image in told["images"]] == [3, -4, 1 << 62]
    for image in told["images"]:
        assert (opened(image["data"]) == expected("digits", 1, seed=image["seed"])[0]).all()


@pytest.mark.parametrize(
    ("accept", "n", "media"),
    [
        ("*/*", 1, "application/json"),
        ("application/json, image/png", 1, "application/json"),
        ("image/png", 1, "image/png"),
        ("image/png", 2, "image/png"),
        ("image/webp;q=0.5, image/jpeg", 1, "image/jpeg"),
        ("text/html;q=0.9, image/*", 1, "image/png"),
        ("application/zip", 1, "application/zip"),
        ("application/x-npz", 2, "application/x-npz"),
        ("text/html", 1, "application/json"),
        (";;;q=x,,", 1, "application/json"),
    ],
)
def test_the_accept_header_chooses(client, accept, n, media):
    answer = client.post("/v1/generate", json={"n": n, "seed": 1}, headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media
    assert answer.headers["x-seed"] == "1"


def test_binary_answers_hold_the_same_images(client, opened):
    right = expected("digits", 3, seed=9)
    one = client.post("/v1/generate", json={"seed": 9, "response": "binary"})
    assert (opened(one.content) == right[0]).all()
    several = client.post("/v1/generate", json={"n": 3, "seed": 9, "response": "binary"})
    with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
        assert (np.stack([opened(archive.read(name)) for name in archive.namelist()]) == right).all()
    arrays = client.post("/v1/generate", json={"n": 3, "seed": 9, "response": "binary", "format": "npz"})
    with np.load(io.BytesIO(arrays.content), allow_pickle=False) as found:
        assert (found["arr_0"][..., 0] == right).all()


def test_a_form_does_what_json_does(client):
    right = client.post("/v1/generate", json={"model": "fashion-mnist", "seed": 4, "labels": "bag", "sigmas": [80, 0.8]}).json()
    fields = {"model": "fashion-mnist", "seed": "4", "labels": "bag", "sigmas": "80, 0.8"}
    found = client.post("/v1/generate", files={name: (None, value) for name, value in fields.items()})
    assert found.status_code == 200
    assert found.json()["images"] == right["images"]


@pytest.mark.parametrize(
    ("wanted", "status", "param", "said"),
    [
        ({"model": "cat"}, 404, "model", "there is no model 'cat': served are digits, fashion-mnist"),
        ({"version": "9"}, 404, "version", "no version '9'"),
        ({"n": 0}, 400, "n", "n is 0, should be greater than or equal to 1"),
        ({"n": 65}, 413, "n", "65 images are asked for, one request may have 64"),
        ({"n": 10**7}, 400, "n", "n is 10000000"),
        ({"n": "3"}, 400, "n", "n is '3', should be a valid integer"),
        ({"n": True}, 400, "n", "n is true"),
        ({"n": None, "labels": [0] * 70, "model": "fashion-mnist"}, 413, "n", "70 images"),
        ({"seeds": list(range(70))}, 413, "n", "70 images"),
        ({"steps": 101}, 400, "steps", "steps asks for 101 network calls, the limit is 100"),
        ({"sigmas": [1.0, 2.0]}, 400, "sigmas", "they must descend"),
        ({"sigmas": [100.0]}, 400, "sigmas", "at most 80"),
        ({"sigmas": []}, 400, "sigmas", "sigmas is [], should have at least 1 value"),
        ({"seeds": []}, 400, "seeds", "seeds is [], should have at least 1 value"),
        ({"labels": []}, 400, "labels", "labels is [], should have at least 1 value"),
        ({"labels": [1, None]}, 400, "labels", "labels[1] is null"),
        ({"labels": {str(i): i for i in range(50)}}, 400, "labels", "labels is an object of 50 values"),
        ({"ema": ""}, 400, "ema", "ema is '', should have at least 1 character"),
        ({"ema": "x" * 201}, 400, "ema", "should have at most 200 characters"),
        ({"format": "npz", "response": "grid"}, 400, "response", 'and format "npz" is no picture: ask for png'),
        ({"sigmas": [-1]}, 400, "sigmas", "sigmas[0] is -1"),
        ({"guidance": 2.0}, 400, "guidance", "not trained with guidance"),
        ({"labels": 3}, 400, "labels", "this model is unconditional"),
        ({"model": "fashion-mnist", "labels": "dres"}, 400, "labels", "no class 'dres'"),
        ({"model": "fashion-mnist", "labels": 10}, 400, "labels", "label 10 is out of range: this model has 10 classes"),
        ({"model": "fashion-mnist", "labels": [1, 2], "n": 3}, 400, "labels", "2 labels are given for 3 images"),
        ({"seeds": [1, 2], "n": 3}, 400, "seeds", "2 seeds are given for 3 images"),
        ({"seeds": [1, 2], "seed": 3}, 400, "seeds", "leave them out"),
        ({"seed": 1 << 63}, 400, "seed", "seed is 9223372036854775808"),
        ({"seed": 1.5}, 400, "seed", "seed is 1.5"),
        ({"first": -1}, 400, "first", "first is -1"),
        ({"ema": "half"}, 400, "ema", "ema 'half' is not in this model"),
        ({"format": "gif"}, 400, "format", "format is 'gif'"),
        ({"stepz": 3}, 400, "stepz", "did you mean steps?"),
        ({"colour": 3}, 400, "colour", "known are model, version"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(client, wanted, status, param, said):
    answer = client.post("/v1/generate", json=wanted)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert not client.hosts.host("digits").own.asked


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", "application/json", 400, "empty"),
        (b"{", "application/json", 400, "JSON"),
        (b"[]", "application/json", 400, "JSON object"),
        (b'"n"', "application/json", 400, "JSON object"),
        (b"null", "application/json", 400, "JSON object"),
        (b'{"n": NaN}', "application/json", 400, "NaN"),
        (b'{"n": 1, "n": 2}', "application/json", 400, "twice"),
        (b"n=1", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
        (b"<n>1</n>", "text/xml", 415, "application/json"),
        (b"no boundary", "multipart/form-data", 400, "cannot be read"),
    ],
)
def test_bodies_that_are_no_request(client, body, kind, status, said):
    answer = client.post("/v1/generate", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_whole_numbers_may_be_written_with_a_point(client):
    answer = client.post("/v1/generate", content=b'{"n": 2.0, "seed": 1}', headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["n"] == 2


def test_a_refusal_of_the_engine_reaches_the_caller(client):
    client.hosts.host("digits").own.problem = overloaded("the queue is full", 3.2)
    answer = client.post("/v1/generate", json={})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "4"
    assert answer.json()["error"]["code"] == "overloaded"


def test_an_error_inside_is_told_without_its_words(client):
    client.hosts.host("digits").own.problem = RuntimeError("/home/secret/path failed")
    answer = client.post("/v1/generate", json={})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_a_request_that_takes_too_long_is_answered_and_cancelled(serve):
    client = serve(request_seconds=0.3)
    engine = client.hosts.host("digits").own
    engine.gate.clear()
    begun = time.monotonic()
    answer = client.post("/v1/generate", json={})
    assert answer.status_code == 504
    assert time.monotonic() - begun < 5
    assert engine.futures[0].cancelled()
    deadline = engine.asked[0][2]
    assert 0 < deadline - begun < 1


def test_images_count_against_the_limit_on_images(serve):
    client = serve(image_rate="5/hour")
    assert client.post("/v1/generate", json={"n": 3}).status_code == 200
    answer = client.post("/v1/generate", json={"n": 3})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert client.post("/v1/generate", json={"n": 2}).status_code == 200
