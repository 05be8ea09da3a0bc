"""Images as files: every pixel where no format is lossy, the same bytes each time, and what they say about themselves."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.reports.pictures import facts_of
from atonce.serving.encode import Made, body, encode, headers
from atonce.serving.schemas import Answer


def images(n: int, channels: int = 1, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, side, side), generator=torch.Generator().manual_seed(n)).to(torch.uint8)


def made(n: int = 3, channels: int = 1, **changes) -> Made:
    values = {
        "kind": "generate",
        "model": "mödel\r\nX-Evil: 1",
        "version": "3",
        "images": images(n, channels),
        "seeds": [5] * n,
        "indices": list(range(n)),
        "labels": [1] * n,
        "names": ["none", "one"],
        "seed": 5,
        "sigmas": (80.0,),
        "calls": 1,
    }
    return Made(**(values | changes))


def array(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(channels, form):
    image = images(1, channels)[0]
    found = array(encode(image, form))
    expected = image.permute(1, 2, 0).numpy() if channels == 3 else image[0].numpy()
    if form == "webp" and channels == 1:
        found = found[..., 0]
    assert (found == expected).all()


def test_jpeg_is_near():
    smooth = torch.arange(32, dtype=torch.uint8).repeat(3, 32, 1) * 8
    found = array(encode(smooth, "jpeg", {"seed": 1}))
    assert np.abs(found.astype(int) - smooth.permute(1, 2, 0).numpy()).max() <= 3


def test_npz_holds_all_images_and_labels():
    batch = images(5, 3)
    with np.load(io.BytesIO(encode(batch, "npz", labels=[3, 1, 4, 1, 5])), allow_pickle=False) as found:
        assert (found["arr_0"] == batch.permute(0, 2, 3, 1).numpy()).all()
        assert found["arr_1"].tolist() == [3, 1, 4, 1, 5]


def test_the_same_images_give_the_same_bytes():
    for form in ("png", "webp", "jpeg", "npz"):
        for sent in ("binary", "grid", "zip"):
            assert body(made(), form, sent, "a").content == body(made(), form, sent, "b").content


def test_one_image_is_itself_and_several_are_a_zip():
    one = body(made(1), "png", "binary", None)
    assert one.media == "image/png"
    assert (array(one.content) == made(1).images[0, 0].numpy()).all()
    several = body(made(3), "png", "binary", None)
    assert several.media == "application/zip"
    with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
        assert archive.namelist() == ["000000.png", "000001.png", "000002.png"]
        for i, name in enumerate(archive.namelist()):
            assert (array(archive.read(name)) == made(3).images[i, 0].numpy()).all()
    assert body(made(3), "png", "grid", None).media == "image/png"
    assert body(made(1), "webp", "zip", None).media == "application/zip"
    assert body(made(3), "npz", "binary", None).media == "application/x-npz"


def test_files_say_how_they_were_made(tmp_path):
    for form in ("png", "webp", "npz"):
        file = tmp_path / f"a.{form}"
        file.write_bytes(body(made(1), form, "binary", None).content)
        facts = facts_of(file)
        assert facts is not None
        assert facts["seed"] == 5
        assert facts["index"] == 0
        assert facts["version"] == "3"
    file = tmp_path / "a.zip"
    file.write_bytes(body(made(2), "png", "zip", None).content)
    assert facts_of(file)["seed"] == 5


def test_json_has_each_image_with_its_seed_and_label():
    answer = Answer.model_validate_json(body(made(), "png", "json", "r1").content)
    assert answer.request_id == "r1"
    assert [image.index for image in answer.images] == [0, 1, 2]
    assert {image.name for image in answer.images} == {"one"}
    for i, image in enumerate(answer.images):
        assert (array(base64.b64decode(image.data)) == made().images[i, 0].numpy()).all()
    answer = Answer.model_validate_json(body(made(), "npz", "json", None).content)
    assert answer.images[0].data is None
    with np.load(io.BytesIO(base64.b64decode(answer.data)), allow_pickle=False) as found:
        assert found["arr_0"].shape == (3, 8, 8, 1)


def test_headers_are_plain_text_that_nobody_can_break():
    found = headers(made(), 0.5)
    assert found["X-Seed"] == "5"
    assert found["X-Labels"] == "1,1,1"
    assert "encode;dur=500.00" in found["Server-Timing"]
    for value in found.values():
        assert value.isascii()
        assert value.isprintable()
    named = body(made(), "png", "binary", None).headers["Content-Disposition"]
    assert named == 'inline; filename="m_del__X-Evil__1-generate-5-0.zip"'
    many = made(300, seed=None, seeds=list(range(300)))
    assert "X-Labels" not in headers(many, 0.0)
    assert "X-Seeds" not in headers(many, 0.0)


def test_an_archive_of_very_many_images_can_be_opened():
    big = made(3000, seed=None, seeds=[1 << 62] * 3000)
    with zipfile.ZipFile(io.BytesIO(body(big, "npz", "binary", None).content)) as archive:
        told = json.loads(archive.comment.decode().partition(" ")[2])
        assert sorted(archive.namelist()) == ["arr_0.npy", "arr_1.npy"]
        assert archive.testzip() is None
    assert told["kind"] == "generate"
