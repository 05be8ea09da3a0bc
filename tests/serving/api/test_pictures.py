"""Pictures that come with requests: what is read, and how each kind of bad or hostile file is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atonce.serving.errors import ServiceError
from atonce.serving.pictures import Budget, Sizes, content_of, decode, read_mask, read_pictures

LIMIT = 4096 * 4096
SIZES = Sizes(LIMIT, 1, 8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, rest: bytes = chunk(b"IDAT", b"x")) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + rest


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def refused(call, *arguments, status: int = 400, **options) -> str:
    with pytest.raises(ServiceError) as caught:
        call(*arguments, **options)
    assert caught.value.status == status
    assert "\n" not in caught.value.message
    assert " at 0x" not in caught.value.message
    return caught.value.message


def test_pixels_arrive_as_they_were_sent(b64, digit):
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        read = read_pictures([b64(digit, form, **options)], SIZES, "image")
        assert (read.images[0, 0].numpy() == digit).all()
        assert read.clear is None
        assert read.border is None


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/png;charset=utf-8;base64,", ""])
def test_data_addresses_and_line_breaks_are_read(b64, digit, head):
    plain = b64(digit)
    broken = "\r\n".join(plain[i : i + 40] for i in range(0, len(plain), 40))
    assert content_of(head + broken, "image") == base64.b64decode(plain)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("data:image/png,abc", "without base64"),
        ("data:;base64", "without base64"),
        ("https://example.org/a.png", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("not base64!", "not base64"),
        ("YWJj", "no picture in PNG, JPEG or WebP"),
        ("/etc/passwd", "not base64"),
    ],
)
def test_what_is_no_picture_is_said(given, said):
    def both(value: str) -> None:
        decode(content_of(value, "image"), LIMIT, "image")

    assert said in refused(both, given)


@given(st.binary(max_size=300))
def test_no_bytes_bring_the_decoder_down(content):
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x10\x00\x00WEBP"):
        with pytest.raises(ServiceError) as caught:
            decode(head + content, LIMIT, "image")
        assert caught.value.status in (400, 413)


def test_a_bomb_is_refused_by_its_header():
    message = refused(decode, png_header(50_000, 50_000), LIMIT, "image", status=413)
    assert "limit" in message
    message = refused(decode, png_header(5_000, 4_000), LIMIT, "image", status=413)
    assert "5000x4000" in message
    assert f"{LIMIT:,}" in message


def test_a_bomb_that_is_a_whole_file_is_not_decoded(monkeypatch):
    lines = zlib.compress(b"\0" * (10_001 * 10_000), 9)  # 100 million pixels in 100 kB
    bomb = png_header(10_000, 10_000, chunk(b"IDAT", lines) + chunk(b"IEND", b""))
    assert len(bomb) < 200_000

    def never(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    refused(decode, bomb, LIMIT, "image", status=413)


def test_a_webp_bomb_is_refused():
    content = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(content, "WEBP", quality=1)
    assert "5000x5000" in refused(decode, content.getvalue(), LIMIT, "image", status=413)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(file, digit, form):
    whole = file(np.kron(digit, np.ones((16, 16))), form)
    for length in (12, len(whole) // 2, len(whole) - 60):
        assert refused(decode, whole[:length], LIMIT, "image").startswith("image")


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(file, digit, form):
    assert "PNG, JPEG or WebP" in refused(decode, file(digit, form), LIMIT, "image")


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(form):
    frames = [Image.new("L", (8, 8), value) for value in (0, 200)]
    content = io.BytesIO()
    frames[0].save(content, form, save_all=True, append_images=frames[1:])
    assert "animated" in refused(decode, content.getvalue(), LIMIT, "image")


def test_a_jpeg_of_very_many_scans_is_refused(file, digit):
    whole = file(np.kron(digit, np.ones((8, 8))), "JPEG")
    bomb = whole[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300 + whole[-2:]
    assert "scans" in refused(decode, bomb, LIMIT, "image")


def test_the_orientation_of_exif_is_applied(b64, digit):
    upright = Image.fromarray(digit)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned = b64(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert (read_pictures([turned], SIZES, "image").images[0, 0].numpy() == digit).all()


def test_sixteen_bits_palettes_and_cmyk_become_what_they_show(file, digit):
    deep = Image.fromarray(digit.astype(np.uint16) * 257)
    assert (np.asarray(decode(file(deep), LIMIT, "image")) == digit).all()
    colours = Image.fromarray(np.stack([digit, 255 - digit, digit // 2], 2))
    few = colours.quantize(16)
    assert (np.asarray(decode(file(few), LIMIT, "image")) == np.asarray(few.convert("RGB"))).all()
    cmyk = decode(file(colours.convert("CMYK"), "JPEG", quality=100, subsampling=0), LIMIT, "image")
    assert cmyk.mode == "RGB"
    assert np.abs(np.asarray(cmyk).astype(int) - np.asarray(colours)).mean() < 4


def test_transparency_says_what_is_to_be_made(b64, digit):
    alpha = np.full((8, 8), 255, dtype=np.uint8)
    alpha[2:5, 3:] = 0
    alpha[0, 0] = 254
    read = read_pictures([b64(np.dstack([digit] * 3 + [alpha]))], SIZES, "image")
    assert read.clear is not None
    assert (read.clear[0, 0].numpy() == (alpha < 255)).all()
    assert (read.images[0, 0].numpy()[alpha == 255] == digit[alpha == 255]).all()
    assert (read.images[0, 0].numpy()[alpha == 0] == 255).all()


def test_another_size_is_refused_or_fitted(b64):
    wide = b64(np.tile(np.arange(24, dtype=np.uint8) * 10, (16, 1)))
    message = refused(read_pictures, [wide], SIZES, "image")
    assert "24x16" in message
    assert "8x8" in message
    assert 'fit "crop"' in message
    crop = read_pictures([wide], Sizes(LIMIT, 1, 8, "crop"), "image")
    assert crop.images.shape == (1, 1, 8, 8)
    assert crop.border is None
    pad = read_pictures([wide], Sizes(LIMIT, 1, 8, "pad"), "image")
    assert pad.border is not None
    rows = pad.border[0, 0].all(1)
    assert rows.tolist() == [True, False, False, False, False, False, True, True]


def test_several_pictures_must_have_one_size(b64, digit):
    one, other = b64(digit), b64(np.zeros((16, 16)))
    assert "several sizes" in refused(read_pictures, [one, other], Sizes(LIMIT, 1, 8, "crop"), "image")
    assert read_pictures([one, one], SIZES, "image").images.shape == (2, 1, 8, 8)
    message = refused(read_pictures, [one, "YWJj"], SIZES, "image")
    assert message.startswith("image[1]")


def test_masks_are_white_or_transparent_where_pixels_are_made(b64, digit):
    read = read_pictures([b64(digit)], SIZES, "image")
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 255
    assert (read_mask(b64(half), read, SIZES)[0, 0].numpy() == (half > 127)).all()
    clear = np.dstack([np.zeros((8, 8, 3), dtype=np.uint8), 255 - half])  # black, and transparent on the right
    assert (read_mask(b64(clear), read, SIZES)[0, 0].numpy() == (half > 127)).all()
    opaque = np.dstack([half] * 3 + [np.full((8, 8), 255, dtype=np.uint8)])
    assert (read_mask(b64(opaque), read, SIZES)[0, 0].numpy() == (half > 127)).all()


def test_masks_that_do_not_fit_or_mark_nothing_are_refused(b64, digit):
    read = read_pictures([b64(digit)], SIZES, "image")
    assert "16x8, the image 8x8" in refused(read_mask, b64(np.full((8, 16), 255)), read, SIZES)
    assert "no white pixel" in refused(read_mask, b64(np.zeros((8, 8))), read, SIZES)


def test_all_pictures_together_have_a_limit_too(b64):
    one = b64(np.zeros((8, 8)))
    assert len(read_pictures([one] * 4, Sizes(64, 1, 8), "image").images) == 4
    message = refused(read_pictures, [one] * 5, Sizes(64, 1, 8), "image", status=413)
    assert message == "image[4] is one too many: the pictures of a request may have 256 pixels together"


def test_small_pictures_become_patches(b64, digit):
    small = digit[::2, ::2]
    read = read_pictures([b64(small)], Sizes(LIMIT, 1, 8, factor=2), "image")
    assert (read.images[0, 0].numpy() == np.kron(small, np.ones((2, 2)))).all()


@pytest.mark.parametrize("cut", [1, 2, 4, 11, 12])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_without_its_last_bytes_is_refused(file, digit, form, cut):
    whole = file(np.kron(digit, np.ones((16, 16))), form)
    assert decode(whole, LIMIT, "image").size == (128, 128)
    assert refused(decode, whole[:-cut], LIMIT, "image").startswith("image is ")
    if form == "PNG":
        assert "without its end" in refused(decode, whole[:-cut], LIMIT, "image")
        assert decode(whole + b"more", LIMIT, "image").size == (128, 128)


def test_a_picture_that_is_long_and_thin_is_refused_by_its_header(monkeypatch):
    thin = png_header(1, 4096 * 4096, chunk(b"IDAT", zlib.compress(b"\0\0" * 1000)) + chunk(b"IEND", b""))
    monkeypatch.setattr(Image.Image, "load", None)
    assert "1x16777216 pixels, the limit of a side is 8,192" in refused(decode, thin, LIMIT, "image", status=413)
    assert "the limit of a side is 9" in refused(decode, png_header(10, 2), LIMIT, "image", status=413, longest=9)
    wide = Sizes(LIMIT, 1, 8, longest=9)
    assert "limit of a side" in refused(read_pictures, [text(png_header(10, 2))], wide, "image", status=413)


def progressive(scans: int, side: int = 64) -> bytes:
    """A JPEG whose last scan stands there again and again: small, and each is gone through."""
    content = io.BytesIO()
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + whole[-2:]


def test_a_jpeg_has_few_scans_and_those_of_a_request_have_a_limit(monkeypatch):
    assert decode(progressive(20), LIMIT, "image").size == (64, 64)
    assert "more than 20 scans" in refused(decode, progressive(21), LIMIT, "image")
    bomb = progressive(190)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", None)
        assert "more than 20 scans" in refused(decode, bomb, LIMIT, "image")
    sizes = Sizes(64 * 64, 1, 64)
    ordinary, heavy = text(progressive(10)), text(progressive(20))
    assert len(read_pictures([ordinary] * 4, sizes, "image").images) == 4
    assert len(read_pictures([heavy] * 2, sizes, "image").images) == 2
    message = refused(read_pictures, [heavy] * 3, sizes, "image", status=413)
    assert message.startswith("image[2] is a JPEG of 20 scans, more work than one request may bring")


def test_a_budget_is_spent_by_pixels_and_by_work():
    budget = Budget.of(100)
    budget.take(100, 10, "image")
    assert (budget.pixels, budget.work) == (300, 3000)
    refused(budget.take, 301, 1, "image", status=413)
    refused(budget.take, 300, 11, "image", status=413)
    assert (budget.pixels, budget.work) == (300, 3000)


def test_files_of_millions_of_parts_are_not_gone_through(file, digit, monkeypatch):
    png, jpeg = file(digit), file(digit, "JPEG")
    many = png[:33] + chunk(b"teXt", b"") * 100_000 + png[33:]
    segments = jpeg[:2] + b"\xff\xfe\x00\x02" * 100_000 + jpeg[2:]
    monkeypatch.setattr(Image, "open", None)
    for content in (many, segments):
        assert "more than 16,384 parts" in refused(decode, content, LIMIT, "image")
