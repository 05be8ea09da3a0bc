"""The parts of picture files, counted without decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atonce.serving.picture_files import MOST_PARTS, Parts, parts_of


def jpeg(**options: object) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG", **options)
    return content.getvalue()


def test_scans_of_ordinary_files():
    assert parts_of(jpeg()).scans == 1
    assert parts_of(jpeg(progressive=True)).scans == 10
    assert parts_of(jpeg(restart_marker_blocks=1)).scans == 1


def test_markers_within_other_segments_are_no_scans():
    assert b"\xff\xda" * 50 in jpeg(comment=b"\xff\xda" * 50)
    assert parts_of(jpeg(comment=b"\xff\xda" * 50)).scans == 1
    assert parts_of(jpeg() + b"\xff\xda" * 50).scans == 1  # behind the end
    assert parts_of(jpeg(progressive=True, exif=b"Exif\0\0" + jpeg(progressive=True))).scans == 10


def test_chunks_of_a_png():
    content = io.BytesIO()
    Image.new("L", (3, 3)).save(content, "PNG")
    whole = content.getvalue()
    assert parts_of(whole) == Parts(3)
    assert parts_of(whole + b"x") == Parts(3)
    assert all(not parts_of(whole[:-cut]).whole for cut in range(1, len(whole) - 8))


def test_counting_ends_where_there_are_too_many():
    head = b"\x89PNG\r\n\x1a\n"
    assert parts_of(head + bytes(12) * 1_000_000).count == MOST_PARTS + 1
    assert parts_of(b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000).count == MOST_PARTS + 1


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"]))
def test_no_bytes_bring_it_down(content, head):
    found = parts_of(head + content)
    assert 0 <= found.count <= 101
    assert found.scans >= 1


@pytest.mark.parametrize("form", ["WEBP", "GIF"])
def test_other_files_have_nothing_to_count(form):
    content = io.BytesIO()
    Image.new("L", (3, 3)).save(content, form)
    assert parts_of(content.getvalue()) == Parts()
