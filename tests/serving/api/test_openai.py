"""OpenAI's images API: the official client works unchanged, a prompt is a label, and nothing is ignored silently."""

from __future__ import annotations

import base64
import io
import urllib.error
import urllib.request

import numpy as np
import pytest

import atonce

openai = pytest.importorskip("openai", reason="no OpenAI client: pip install openai")

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # its variations, which others still use


@pytest.fixture
def api(listen):
    """The official client against a real server on loopback, and the server's address."""
    address, _ = listen()
    with openai.OpenAI(base_url=f"{address}/v1", api_key="not needed", max_retries=0, timeout=60) as client:
        yield client, address


def right_half_clear(digit: np.ndarray) -> np.ndarray:
    alpha = np.full((8, 8), 255, dtype=np.uint8)
    alpha[:, 4:] = 0
    return np.dstack([digit] * 3 + [alpha])


def test_models_are_listed(api):
    client, _ = api
    found = list(client.models.list())
    assert [model.id for model in found] == ["digits", "fashion-mnist"]
    assert found[0].object == "model"
    assert client.models.retrieve("fashion-mnist").id == "fashion-mnist"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-image-1'"):
        client.models.retrieve("gpt-image-1")


def test_the_client_generates_what_the_model_does(api, opened):
    client, _ = api
    answer = client.images.generate(
        model="fashion-mnist", prompt="Dress", n=2, size="28x28", response_format="b64_json", extra_body={"seed": 7}
    )
    right = atonce.to_uint8(atonce.load("fashion-mnist").sample(2, seed=7, labels=3)).numpy()[:, 0]
    assert (np.stack([opened(image.b64_json) for image in answer.data]) == right).all()
    assert answer.data[0].revised_prompt == atonce.load("fashion-mnist").labels[3]
    assert answer.created > 1_600_000_000
    assert answer.output_format == "png"
    assert len(client.images.generate(prompt="", n=3, size="auto", quality="auto", user="me").data) == 3


def test_a_prompt_may_name_one_class_for_each_image(api):
    client, _ = api
    answer = client.images.generate(model="fashion-mnist", prompt="bag, ankle boot", n=2)
    assert [image.revised_prompt.lower() for image in answer.data] == ["bag", "ankle boot"]


def test_links_give_the_same_image_without_a_key(api, opened):
    client, address = api
    wanted = {"model": "fashion-mnist", "prompt": "sandal", "n": 2}
    answer = client.images.generate(**wanted, response_format="url", output_format="webp", extra_body={"seed": 3, "steps": 2})
    right = client.images.generate(**wanted, extra_body={"seed": 3, "steps": 2})
    for image, same in zip(answer.data, right.data, strict=True):
        assert image.url.startswith(f"{address}/v1/images/link/")
        assert image.b64_json is None
        with urllib.request.urlopen(image.url) as found:
            assert found.headers["Content-Type"] == "image/webp"
            assert "max-age=" in found.headers["Cache-Control"]
            assert (opened(found.read())[..., 0] == opened(same.b64_json)).all()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{answer.data[0].url}x")
    assert caught.value.code == 404


def test_the_client_edits(api, digit, file, opened):
    client, _ = api
    answer = client.images.edit(
        model="digits", image=("a.png", file(right_half_clear(digit))), prompt="", n=2, extra_body={"seed": 5}
    )
    found = np.stack([opened(image.b64_json) for image in answer.data])
    assert (found[:, :, :4] == digit[:, :4]).all()
    assert (found[0] != found[1]).any()
    mask = np.zeros((8, 8, 4), dtype=np.uint8)
    mask[:, :4, 3] = 255
    same = client.images.edit(
        model="digits", image=io.BytesIO(file(digit)), mask=("m.png", file(mask)), prompt="digits", n=2, extra_body={"seed": 5}
    )
    assert [image.b64_json for image in same.data] == [image.b64_json for image in answer.data]
    several = client.images.edit(
        model="digits", image=[("a.png", file(right_half_clear(digit))), ("b.png", file(right_half_clear(digit.T)))], prompt=""
    )
    assert len(several.data) == 2


def test_the_client_makes_variations(api, digit, file):
    client, _ = api
    answer = client.images.create_variation(model="digits", image=("a.png", file(digit)), n=3, response_format="b64_json")
    assert len({image.b64_json for image in answer.data}) == 3
    large = np.kron(digit, np.ones((64, 64), dtype=np.uint8))
    answer = client.images.create_variation(model="digits", image=("a.png", file(large)), n=1, size="8x8")
    assert np.frombuffer(base64.b64decode(answer.data[0].b64_json)[16:24], ">u4").tolist() == [8, 8]


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        ({"prompt": "a photo of a cat"}, "prompt", "digits has no classes: leave it empty, or say 'digits'"),
        ({"prompt": "a red dress", "model": "fashion-mnist"}, "prompt", "near: Dress"),
        ({"prompt": "snaker", "model": "fashion-mnist"}, "prompt", "near: Sneaker"),
        ({"prompt": "bag, dress", "n": 3, "model": "fashion-mnist"}, "prompt", "2 classes for 3 images"),
        ({"prompt": "", "size": "1024x1024"}, "size", "this model makes 8x8"),
        ({"prompt": "", "quality": "hd"}, "quality", "leave it out, or say 'auto' or 'standard'"),
        ({"prompt": "", "style": "vivid"}, "style", "say 'natural'"),
        ({"prompt": "", "background": "transparent"}, "background", "'auto' or 'opaque'"),
        ({"prompt": "", "stream": True}, "stream", "say false"),
        ({"prompt": "", "output_compression": 50, "output_format": "jpeg"}, "output_compression", "say 100"),
        ({"prompt": "", "partial_images": 2}, "partial_images", "say 0"),
        ({"prompt": "", "n": 0}, "n", "n is 0"),
        ({"prompt": "", "response_format": "file"}, "response_format", "'b64_json' or 'url'"),
        ({}, "prompt", "prompt is missing"),
        ({"prompt": "", "negative_prompt": "x"}, "negative_prompt", "is no field"),
    ],
)
def test_what_cannot_be_honoured_is_said(client, wanted, param, said):
    answer = client.post("/v1/images/generations", json=wanted)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_errors_reach_the_client_as_its_own(api, digit, file):
    client, _ = api
    with pytest.raises(openai.BadRequestError, match="nothing says what is to be made"):
        client.images.edit(image=("a.png", file(digit)), prompt="")
    with pytest.raises(openai.BadRequestError, match="only generations can have"):
        client.images.create_variation(image=("a.png", file(digit)), response_format="url")
    with pytest.raises(openai.NotFoundError, match="there is no model 'dall-e-3'"):
        client.images.generate(model="dall-e-3", prompt="")
    with pytest.raises(openai.APIStatusError, match="65 images") as caught:
        client.images.generate(prompt="", n=65)
    assert caught.value.status_code == 413


def test_links_end_and_are_tied_to_the_version_and_the_secret(serve):
    client = serve(link_secret="one", link_seconds=3600.0)
    wanted = {"prompt": "", "response_format": "url", "seed": 1}
    link = client.post("/v1/images/generations", json=wanted).json()["data"][0]["url"]
    path = link.partition("testserver")[2]
    first = client.get(path)
    assert first.status_code == 200
    assert first.headers["x-model-version"] == "1"
    assert serve(link_secret="one").get(path).content == first.content
    assert serve(link_secret="two").get(path).status_code == 404
    client.hosts.host("digits").own.version = "2"
    gone = client.get(path)
    assert gone.status_code == 404
    assert "has no version '1'" in gone.json()["error"]["message"]
    short = serve(link_secret="one", link_seconds=0.001)
    expired = short.post("/v1/images/generations", json=wanted).json()["data"][0]["url"].partition("testserver")[2]
    import time

    time.sleep(1.1)
    assert "expired" in short.get(expired).json()["error"]["message"]
