"""``POST /v1/edits/...``: each edit is the library's, and what a request says is what the library is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import atonce
from atonce.core.images import from_uint8
from atonce.serving.edit_plans import MOST_WINDOWS
from atonce.serving.edits import plan_edit, run_edit
from atonce.serving.schemas import EDITS, EditAnswer
from atonce.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def dress():
    """One image of the size and the classes of the Fashion-MNIST model, uint8 [28, 28]."""
    return atonce.to_uint8(atonce.load("fashion-mnist").sample(1, seed=11, labels=3))[0, 0].numpy()


@pytest.fixture(scope="module")
def digits():
    return atonce.load("digits")


def right_half(side: int) -> np.ndarray:
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[:, side // 2 :] = 255
    return mask


def x_of(array: np.ndarray) -> torch.Tensor:
    return from_uint8(torch.from_numpy(np.array(array)))[None]


def as_array(images: torch.Tensor) -> np.ndarray:
    return atonce.to_uint8(images).numpy()[..., 0, :, :]


def results(answer, opened) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.stack([opened(image["data"]) for image in EditAnswer.model_validate(answer.json()).model_dump()["images"]])


def test_inpaint_keeps_what_is_known_and_makes_the_rest(client, digits, digit, b64, opened):
    mask = right_half(8)
    wanted = {"image": b64(digit), "mask": b64(mask), "n": 3, "seed": 5, "steps": 4}
    found = results(client.post("/v1/edits/inpaint", json=wanted), opened)
    many = x_of(digit).expand(3, 1, 8, 8)
    right = as_array(atonce.edit.inpaint(digits, many, torch.from_numpy(mask > 0), seed=5, steps=4))
    assert (found == right).all()
    assert (found[:, :, :4] == digit[:, :4]).all()


def test_the_transparent_part_of_a_picture_is_its_mask(client, digits, digit, b64, opened):
    mask = right_half(8)
    clear = np.dstack([digit] * 3 + [255 - mask])
    found = results(client.post("/v1/edits/inpaint", json={"image": b64(clear), "seed": 5}), opened)
    right = as_array(atonce.edit.inpaint(digits, x_of(digit), torch.from_numpy(mask > 0), seed=5)[None])[0]
    assert (found == right).all()


def test_each_edit_is_that_of_the_library(client, digits, digit, b64, opened):
    x, mask = x_of(digit), torch.from_numpy(right_half(8) > 0)
    picture, hole = b64(digit), b64(right_half(8))
    small = digit.reshape(4, 2, 4, 2).mean((1, 3)).astype(np.uint8)
    edit = atonce.edit
    cases = [
        ("outpaint", {"size": [8, 12], "place": [0, 1]}, edit.outpaint(digits, x, (8, 12), place=(0, 1), seed=5)),
        ("outpaint", {"image": b64(digit[2:6, 1:7])}, edit.outpaint(digits, x_of(digit[2:6, 1:7]), (8, 8), seed=5)),
        ("upscale", {"image": b64(small), "factor": 2}, edit.upscale(digits, x_of(small), 2, seed=5)),
        ("restore", {"mask": hole, "factor": 2}, edit.restore(digits, x, edit.pixels(mask) & edit.averages(2), seed=5)),
        (
            "restore",
            {"mask": hole, "factor": 2, "either": True},
            edit.restore(digits, x, edit.pixels(mask) | edit.averages(2), seed=5),
        ),
        ("stroke", {"sigma": 2.0, "steps": 3}, edit.stroke(digits, x, sigma=2.0, steps=3, seed=5)),
        ("local", {"mask": hole, "sigma": 1.0, "steps": 2}, edit.local(digits, x, mask, sigma=1.0, steps=2, seed=5)),
        ("variations", {"n": 3, "sigmas": [2.0, 1.0]}, edit.variations(digits, x[0][None], n=3, sigmas=[2.0, 1.0], seed=5)),
        ("denoise", {"sigma": 0.5}, edit.denoise(digits, x[None], 0.5)[0]),
    ]
    for kind, options, right in cases:
        answer = client.post(f"/v1/edits/{kind}", json={"image": picture, "seed": 5} | options)
        found = results(answer, opened)
        assert (found == as_array(right.reshape(-1, *right.shape[-3:]))).all(), kind


def test_several_pictures_have_results_of_their_own(client, digits, digit, b64, opened):
    other = digit.T.copy()
    masks = [right_half(8), right_half(8).T.copy()]
    pictures = [b64(np.dstack([image] * 3 + [255 - mask])) for image, mask in zip((digit, other), masks, strict=True)]
    answer = client.post("/v1/edits/inpaint", json={"image": pictures, "n": 2, "seed": 1})
    found = results(answer, opened)
    x = torch.stack([x_of(digit)] * 2 + [x_of(other)] * 2)
    mask = torch.stack([torch.from_numpy(m > 0)[None] for m in (masks[0], masks[0], masks[1], masks[1])])
    assert (found == as_array(atonce.edit.inpaint(digits, x, mask, seed=1))).all()
    assert [image["index"] for image in answer.json()["images"]] == [0, 1, 2, 3]


def test_classes_are_given_or_guessed(client, dress, b64, opened):
    model = atonce.load("fashion-mnist")
    wanted = {"model": "fashion-mnist", "image": b64(dress), "seed": 2, "n": 2}
    told = client.post("/v1/edits/variations", json=wanted | {"labels": "bag"}).json()
    assert [image["name"] for image in told["images"]] == [model.labels[8]] * 2
    assert told["guessed"] is False
    answer = client.post("/v1/edits/variations", json=wanted)
    assert answer.json()["guessed"] is True
    assert answer.json()["calls"] == 1 + 3 * 10
    right = atonce.edit.variations(model, x_of(dress), n=2, seed=2)
    assert (results(answer, opened) == as_array(right)).all()


def test_denoise_says_what_it_estimated(client, digits, digit, b64):
    told = client.post("/v1/edits/denoise", json={"image": b64(digit)}).json()
    assert told["estimated"] == pytest.approx([float(atonce.edit.estimate_sigma(x_of(digit)))])


def test_interpolate_between_seeds(client, digits, opened):
    told = client.post("/v1/edits/interpolate", json={"seeds": [3, 4], "n": 5}).json()
    found = np.stack([opened(image["data"]) for image in told["images"]])
    for place, seed in ((0, 3), (-1, 4)):
        assert np.abs(found[place].astype(int) - as_array(digits.sample(1, seed=seed))[0]).max() <= 1
    assert told["calls"] == 1
    assert told["seed"] is None


def test_interpolate_between_pictures(client, digits, digit, b64, opened):
    ends = [atonce.to_uint8(digits.sample(1, seed=seed))[0, 0].numpy() for seed in (3, 4)]
    wanted = {"images": [b64(end) for end in ends], "n": 3, "iterations": 60}
    told = client.post("/v1/edits/interpolate", json=wanted).json()
    found = np.stack([opened(image["data"]) for image in told["images"]])
    for place, end, error in ((0, ends[0], told["error"][0]), (-1, ends[1], told["error"][1])):
        assert error < 0.25
        difference = (x_of(found[place]) - x_of(end)).square().mean().sqrt()
        assert float(difference) == pytest.approx(error, abs=0.02)  # what lies outside the range is cut off


def test_a_form_brings_files(client, digit, b64, file):
    wanted = {"image": b64(digit), "mask": b64(right_half(8)), "seed": 5, "n": 2}
    right = client.post("/v1/edits/inpaint", json=wanted).json()
    files = {"image": ("a.png", file(digit)), "mask": ("b.png", file(right_half(8)))}
    found = client.post("/v1/edits/inpaint", files=files, data={"seed": "5", "n": "2"}).json()
    assert found["images"] == right["images"]
    two = [("image", ("a.png", file(digit))), ("image", ("b.png", file(digit)))]
    assert client.post("/v1/edits/stroke", files=two).json()["n"] == 2


def test_parts_of_an_edit_are_parts_of_its_results(client, dress, b64):
    engine, settings = client.hosts.host("fashion-mnist").own, ServeSettings()
    pictures = [b64(dress), b64(dress[::-1].copy())]
    requests = {
        "inpaint": {"image": pictures, "mask": b64(right_half(28)), "n": 3, "seed": 4, "steps": 2},
        "variations": {"image": pictures, "n": 3, "seed": 4},
        "denoise": {"image": pictures * 3, "sigma": 0.4},
        "interpolate": {"seeds": [1, 2], "n": 6, "labels": [0, 1]},
    }
    for kind, wanted in requests.items():
        request = EDITS[kind].model_validate(wanted)
        plan = plan_edit(engine.model, kind, request, settings)
        assert plan.total == 6
        whole = run_edit(engine, kind, request, plan=plan)
        parts = [run_edit(engine, kind, request, plan=plan, places=range(a, b)) for a, b in ((0, 1), (1, 4), (4, 6))]
        joined = torch.cat([part.images for part in parts])
        assert torch.allclose(joined, whole.images, atol=1e-5), kind
        assert sum((part.labels for part in parts), []) == whole.labels
        assert sum((part.indices for part in parts), []) == whole.indices


def test_progress_rises_to_the_end_and_can_end_the_work(client, digit, b64):
    engine = client.hosts.host("digits").own
    request = EDITS["inpaint"].model_validate({"image": b64(digit), "mask": b64(right_half(8)), "n": 3, "steps": 4})
    told: list[float] = []
    run_edit(engine, "inpaint", request, progress=told.append)
    assert told == sorted(told)
    assert len(told) == 4
    assert told[-1] == 3

    class Stop(Exception): ...

    def stop(_: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_edit(engine, "inpaint", request, progress=stop)


def bad(b64, digit):
    hole, picture = b64(right_half(8)), b64(digit)
    clear = b64(np.zeros((8, 8)))
    return [
        ("inpaint", {}, "image", "image is missing"),
        ("inpaint", {"image": picture}, "mask", "nothing says what is to be made"),
        ("inpaint", {"image": picture, "mask": clear}, "mask", "no white pixel"),
        ("inpaint", {"image": picture, "mask": b64(right_half(16))}, "mask", "mask is 16x16, the image 8x8"),
        ("inpaint", {"image": "!", "mask": hole}, "image", "not base64"),
        ("inpaint", {"image": b64(right_half(9)), "mask": hole}, "image", 'fit "crop"'),
        ("inpaint", {"image": picture, "mask": hole, "steps": 101}, "steps", "the limit is 100"),
        ("inpaint", {"image": picture, "mask": hole, "sigmas": [1, 2]}, "sigmas", "they must descend"),
        ("inpaint", {"image": picture, "mask": hole, "labels": 3}, "labels", "unconditional"),
        ("inpaint", {"image": picture, "mask": hole, "guidance": 2}, "guidance", "not trained with guidance"),
        ("inpaint", {"image": picture, "mask": hole, "size": [8, 8]}, "size", "is no field"),
        ("local", {"image": picture}, "mask", "nothing says"),
        ("local", {"image": picture, "mask": hole, "sigma": 100}, "sigma", "at most 80"),
        ("restore", {"image": picture}, "mask", "nothing says what is known"),
        ("restore", {"image": picture, "grey": True}, "grey", "makes grey pictures"),
        ("restore", {"image": picture, "factor": 3}, "factor", "does not divide"),
        ("upscale", {"image": picture}, "factor", "factor is missing"),
        ("upscale", {"image": picture, "factor": 2}, "image", "4x4 is needed (8x8 of the model over the factor 2)"),
        ("upscale", {"image": picture, "factor": 3}, "factor", "does not divide"),
        ("colorize", {"image": picture}, "model", "makes grey pictures"),
        ("outpaint", {"image": picture, "size": [4, 4]}, "size", "at least the model's frame"),
        ("outpaint", {"image": picture, "size": [8]}, "size", "size is [8]"),
        ("outpaint", {"image": picture, "size": [8, 5000]}, "size", "less than or equal to 4096"),
        ("outpaint", {"image": picture, "size": [4096, 4096]}, "size", f"at most {MOST_WINDOWS}"),
        ("outpaint", {"image": picture, "place": [1, 0]}, "place", "place is (1, 0)"),
        ("denoise", {"image": picture, "sigma": -1}, "sigma", "sigma is -1"),
        ("stroke", {"image": picture, "sigma": 1, "sigmas": [1]}, "sigma", "leave sigma out"),
        ("interpolate", {}, "images", "neither is given"),
        ("interpolate", {"seeds": [1, 2], "images": [picture, picture]}, "images", "both are given"),
        ("interpolate", {"seeds": [1]}, "seeds", "seeds is [1]"),
        ("interpolate", {"seeds": [1, 2], "n": 1}, "n", "n is 1"),
    ]


def test_what_does_not_fit_is_said_in_one_line(client, b64, digit):
    for kind, wanted, param, said in bad(b64, digit):
        answer = client.post(f"/v1/edits/{kind}", json=wanted)
        assert answer.status_code == 400, (kind, wanted, answer.text[:300])
        error = answer.json()["error"]
        assert said in error["message"], (kind, error)
        assert error["param"] == param, (kind, error)
        assert "\n" not in error["message"]


def test_too_many_results_are_refused_before_pictures_are_read(client, digit, b64, monkeypatch):
    answer = client.post("/v1/edits/stroke", json={"image": ["!"] * 9, "n": 8})
    assert answer.status_code == 413
    assert "72 images" in answer.json()["error"]["message"]
    answer = client.post("/v1/edits/outpaint", json={"image": b64(digit), "size": [40, 40], "n": 1})
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "size"


def test_a_bomb_is_413_and_a_large_picture_may_be_allowed(serve, b64):
    client = serve(max_pixels=100)
    answer = client.post("/v1/edits/stroke", json={"image": b64(right_half(16)), "fit": "crop"})
    assert answer.status_code == 413
    assert "16x16 pixels, the limit is 100" in answer.json()["error"]["message"]
    assert client.post("/v1/edits/stroke", json={"image": b64(right_half(10)), "fit": "crop"}).status_code == 200


def test_the_input_is_watched(client, digit, b64):
    client.app.state.service.metrics.loaded("digits", "1", "stable")
    client.post("/v1/edits/stroke", json={"image": [b64(digit)] * 2})
    assert b'atonce_input_images_total{model="digits"} 2.0' in client.get("/metrics").content


def test_reading_pictures_holds_up_no_answer_and_no_other_caller(client, digit, b64, monkeypatch):
    import threading

    from atonce.serving import answers

    gate, begun, plan = threading.Event(), threading.Semaphore(0), answers.plan_edit

    def slow(*arguments):
        begun.release()
        assert gate.wait(60)
        return plan(*arguments)

    monkeypatch.setattr(answers, "plan_edit", slow)
    wanted = {"image": b64(digit)}
    found = []
    send = [threading.Thread(target=lambda: found.append(client.post("/v1/edits/stroke", json=wanted))) for _ in range(4)]
    for each in send:
        each.start()
    try:
        assert begun.acquire(timeout=60)
        assert client.post("/v1/generate", json={"n": 2}).status_code == 200
    finally:
        gate.set()
        for each in send:
            each.join(60)
    assert {answer.status_code for answer in found} <= {200, 503}


def test_the_document_names_the_formats_that_are_read(client):
    text = client.get("/openapi.json").text
    assert "PNG, JPEG or WebP" in text
    assert not any(name in text for name in ("BMP", "GIF", "TIFF"))
