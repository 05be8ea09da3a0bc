"""One picture: every mode becomes grey or RGB, crops and resizes do what they say, and damage is named."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.errors import DataError
from atonce.data.dataset import ImageData
from atonce.data.pictures import Shaping, convert, pixels, read_picture, shape_picture


def saved(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def noise(shape, seed=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_keep_every_pixel(form):
    grey = noise((5, 7))
    options = {"lossless": True} if form == "WEBP" else {}
    found = read_picture(saved(Image.fromarray(grey), form, **options), "a")
    np.testing.assert_array_equal(np.asarray(found.convert("L")), grey)
    if form != "GIF":
        rgb = noise((5, 7, 3))
        np.testing.assert_array_equal(
            pixels(read_picture(saved(Image.fromarray(rgb), form, **options), "a")), rgb.transpose(2, 0, 1)
        )


def test_jpeg_in_grey_and_rgb():
    smooth = np.linspace(0, 255, 256).reshape(16, 16).astype(np.uint8)
    assert read_picture(saved(Image.fromarray(smooth), "JPEG"), "a").mode == "L"
    assert read_picture(saved(Image.fromarray(smooth).convert("RGB"), "JPEG"), "a").mode == "RGB"
    assert read_picture(saved(Image.fromarray(smooth).convert("CMYK"), "JPEG"), "a").mode == "RGB"


def test_sixteen_bits_are_rounded():
    values = np.array([[0, 128, 129, 257], [65535, 65407, 65406, 32896]], np.uint16)
    for form in ("PNG", "TIFF"):
        found = read_picture(saved(Image.fromarray(values), form), "a")
        assert np.asarray(found).tolist() == [[0, 0, 1, 1], [255, 255, 254, 128]]


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 255, 51]  # black at 0, 100 and 20 per cent
    assert pixels(read_picture(saved(Image.fromarray(rgba)), "a"))[:, 0].T.tolist() == [[255] * 3, [0] * 3, [204] * 3]
    grey = read_picture(saved(Image.fromarray(rgba).convert("LA")), "a")
    assert grey.mode == "L"
    assert np.asarray(grey)[0].tolist() == [255, 0, 204]


def test_palettes_with_and_without_a_transparent_colour():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    assert pixels(read_picture(saved(picture), "a"))[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]
    assert pixels(read_picture(saved(picture, transparency=1), "a"))[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]


def test_black_and_white_bits():
    found = read_picture(saved(Image.fromarray(np.array([[True, False]]))), "a")
    assert (found.mode, np.asarray(found).tolist()) == ("L", [[255, 0]])


def test_orientation_of_exif_is_applied():
    grey = noise((2, 3))
    picture = Image.fromarray(grey)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    np.testing.assert_array_equal(np.asarray(read_picture(saved(picture, exif=exif), "a")), np.rot90(grey, -1))


def test_crop_takes_the_middle():
    grey = noise((4, 8))
    picture = Image.fromarray(grey)
    np.testing.assert_array_equal(np.asarray(shape_picture(picture, Shaping(4), "a")), grey[:, 2:6])
    np.testing.assert_array_equal(
        np.asarray(shape_picture(picture.transpose(Image.Transpose.TRANSPOSE), Shaping(4), "a")), grey[:, 2:6].T
    )
    with pytest.raises(DataError, match="a is 8x4, not square.*'center'"):
        shape_picture(picture, Shaping(4, crop="none"), "a")
    assert shape_picture(picture, Shaping(), "a").size == (8, 4)


def test_whole_reductions_are_block_means():
    grey = noise((6, 6))
    found = np.asarray(shape_picture(Image.fromarray(grey), Shaping(3), "a"))
    mean = grey.reshape(3, 2, 3, 2).mean((1, 3))
    assert np.abs(found - mean).max() <= 0.5


def test_other_sizes_use_lanczos_and_bicubic():
    picture = Image.fromarray(noise((10, 10)))
    for size, how in ((7, Image.Resampling.LANCZOS), (13, Image.Resampling.BICUBIC), (20, Image.Resampling.BICUBIC)):
        found = shape_picture(picture, Shaping(size), "a")
        np.testing.assert_array_equal(np.asarray(found), np.asarray(picture.resize((size, size), how)))


def test_channels():
    grey = Image.fromarray(noise((2, 2)))
    rgb = shape_picture(grey, Shaping(channels=3), "a")
    np.testing.assert_array_equal(pixels(rgb), np.repeat(pixels(grey), 3, 0))
    np.testing.assert_array_equal(pixels(shape_picture(rgb, Shaping(channels=1), "a")), pixels(grey))


def test_convert_images_in_memory():
    data = ImageData(torch.from_numpy(noise((3, 3, 8, 8))), torch.arange(3), name="x", source="here")
    assert convert(data, Shaping()) is data
    assert convert(data, Shaping(8, 3)) is data
    small = convert(data, Shaping(4, 1))
    assert small.shape == (1, 4, 4)
    assert small.source == "here; as 1x4x4"
    assert small.labels is data.labels
    one = Image.fromarray(data.images[1].permute(1, 2, 0).numpy()).convert("L").reduce(2)
    np.testing.assert_array_equal(small.images[1, 0].numpy(), np.asarray(one))
    with pytest.raises(DataError, match="2 channels cannot be converted"):
        convert(ImageData(torch.zeros(1, 2, 4, 4, dtype=torch.uint8)), Shaping(2))
    with pytest.raises(DataError, match="image 0 of x is 5x4"):
        convert(ImageData(torch.zeros(1, 1, 4, 5, dtype=torch.uint8), name="x"), Shaping(2, crop="none"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0,), "between 1 and 4096 pixels, not 0"),
        ((10**6,), "4096"),
        ((8, 2), "1 .grey. or 3 .RGB., not 2"),
        ((8, 3, "random"), "'random'"),
    ],
)
def test_wrong_wishes_are_named(arguments, text):
    with pytest.raises(DataError, match=text):
        Shaping(*arguments)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_truncated_pictures_are_named(form):
    content = saved(Image.fromarray(noise((40, 40, 3))), form)
    for keep in (0.0, 0.01, 0.3, 0.8):
        with pytest.raises(DataError, match=r"^dir/b\.png is (truncated or damaged|not a picture)") as found:
            read_picture(content[: int(keep * len(content))], "dir/b.png")
        assert "\n" not in str(found.value)


def test_a_flipped_bit_in_a_png_is_found():
    content = bytearray(saved(Image.fromarray(noise((20, 20)))))
    content[len(content) // 2] ^= 16
    with pytest.raises(DataError, match="b.png is truncated or damaged"):
        read_picture(bytes(content), "b.png")


def test_other_contents_are_named():
    with pytest.raises(DataError, match="a.png is not a picture"):
        read_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.png")
    with pytest.raises(DataError, match="floating-point"):
        read_picture(saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "a.tif")
    with pytest.raises(DataError, match="values from 0 to 70000"):
        read_picture(saved(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "a.tif")


def bomb(side: int) -> bytes:
    """A PNG of a hundred bytes that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000, 2_000_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(side):
    with pytest.raises(DataError, match="bomb.png is absurdly large|bomb.png is truncated or damaged"):
        read_picture(bomb(side), "bomb.png")
    if side < 10**6:
        with pytest.raises(DataError, match="absurdly large"):
            read_picture(bomb(side), "bomb.png")
