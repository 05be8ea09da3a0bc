"""Near-duplicates: the signature, and that the search misses nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atonce.core.errors import InputError
from atonce.data import near
from atonce.data.near import LIMIT, first_of_each, near_pairs, signature


def smooth(seed=0, side=64):
    """A picture with large shapes, as photographs have."""
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def distance(a, b):
    return float(np.linalg.norm(signature(a) - signature(b)))


def test_a_signature_has_mean_0_and_length_1_and_forgets_brightness_and_contrast():
    picture = smooth()
    found = signature(picture)
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert distance(picture, picture.point(lambda v: v // 2 + 50)) < 0.02
    assert not signature(Image.new("L", (9, 9), 77)).any()
    assert not signature(Image.new("RGB", (3, 40), "white")).any()


def test_the_distance_is_the_root_mean_square_of_the_rule():
    a, b = smooth(1), smooth(2)
    grey = [np.asarray(x.convert("L"), float).reshape(16, 4, 16, 4).mean((1, 3)) for x in (a, b)]
    standard = [(x - x.mean()) / x.std() for x in grey]
    assert distance(a, b) == pytest.approx(np.sqrt(np.mean((standard[0] - standard[1]) ** 2)), abs=1e-5)


def test_copies_are_near_and_other_pictures_are_not():
    picture = smooth(3)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=75)
    assert distance(picture, Image.open(io.BytesIO(jpeg.getvalue()))) < LIMIT
    assert distance(picture, picture.resize((48, 48), Image.Resampling.BICUBIC)) < LIMIT
    assert distance(picture, picture.convert("L")) < LIMIT
    assert distance(picture, smooth(4)) > 5 * LIMIT
    assert distance(picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > LIMIT


def rows_of(seed, n, spread):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 4), 256, generator=g)
    rows = centres[torch.randint(0, len(centres), (n,), generator=g)] + spread * torch.randn(n, 256, generator=g)
    rows[torch.rand(n, generator=g) < 0.1] = 0
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), spread=st.floats(0.01, 0.3), limit=st.floats(0, 1))
def test_all_pairs_of_one_set_are_found_and_no_others(seed, n, spread, limit):
    rows = rows_of(seed, n, spread)
    found = near_pairs(rows, limit)
    apart = torch.cdist(rows.double(), rows.double())
    lit = rows.any(1)
    surely = {(i, j) for i in range(n) for j in range(i + 1, n) if lit[i] and lit[j] and apart[i, j] <= limit - 1e-5}
    perhaps = {(i, j) for i in range(n) for j in range(i + 1, n) if lit[i] and lit[j] and apart[i, j] <= limit + 1e-5}
    pairs = {tuple(pair) for pair in found.rows.tolist()}
    assert surely <= pairs <= perhaps
    assert len(pairs) == len(found.rows)
    assert found.distances.tolist() == sorted(found.distances.tolist())
    assert not found.more


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30), m=st.integers(1, 30), limit=st.floats(0.05, 0.9))
def test_all_pairs_of_two_sets_are_found(seed, n, m, limit):
    rows = rows_of(seed, n + m, 0.1)
    found = {tuple(pair) for pair in near_pairs(rows[:n], limit, rows[n:]).rows.tolist()}
    apart = torch.cdist(rows[:n].double(), rows[n:].double())
    for i in range(n):
        for j in range(m):
            if abs(apart[i, j] - limit) > 1e-5:
                assert ((i, j) in found) == bool(rows[i].any() and rows[n + j].any() and apart[i, j] < limit)


def test_parts_make_no_difference_and_progress_is_told(monkeypatch):
    rows = rows_of(1, 200, 0.05)
    whole = near_pairs(rows, 0.5)
    monkeypatch.setattr(near, "_ROWS", 7)
    monkeypatch.setattr(near, "_COLUMNS", 5)
    told = []
    parts = near_pairs(rows, 0.5, tell=lambda done, total: told.append((done, total)))
    assert torch.equal(whole.rows, parts.rows)
    assert told[-1][0] == told[-1][1] > 100


def test_too_many_pairs_are_cut_and_said(monkeypatch):
    monkeypatch.setattr(near, "MOST_PAIRS", 10)
    same = torch.ones(20, 256) / 16
    found = near_pairs(same, 0.1)
    assert (len(found.rows), found.more) == (10, True)


@pytest.mark.parametrize("limit", [-0.1, 1.5, float("nan"), "a"])
def test_limits_out_of_range_are_named(limit):
    with pytest.raises(InputError, match="the limit of near-duplicates is"):
        near_pairs(torch.zeros(2, 256), limit)


def test_leaving_out_keeps_the_first_and_does_not_chain():
    chain = torch.tensor([[0, 1], [1, 2], [2, 3], [4, 7]])
    assert first_of_each(chain, 8) == [1, 3, 7]  # 2 stays, since 1 is gone
    assert first_of_each(torch.zeros((0, 2), dtype=torch.int64), 3) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] < p[1]), max_size=30))
def test_after_leaving_out_no_pair_is_left_and_every_one_that_left_had_a_reason(pairs):
    gone = set(first_of_each(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), 13))
    assert not any(a not in gone and b not in gone for a, b in pairs)
    assert all(any(b == row and a not in gone for a, b in pairs) for row in gone)
