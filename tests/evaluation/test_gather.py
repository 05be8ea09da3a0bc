from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.data import limits
from atonce.evaluation.extractors import Extractor, pixels
from atonce.evaluation.frechet import BLOCKS, FeatureStatistics, Moments, frechet_distance, frechet_metric, joined
from atonce.evaluation.gather import CHUNK, block_of, gather, share

IMAGES = torch.randint(0, 256, (10_000, 1, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(first: int, count: int) -> Tensor:
    return IMAGES[first : first + count]


@pytest.mark.parametrize("batch", [999, 3000, 20_000])
def test_each_image_is_in_its_block(batch: int) -> None:
    """10,000 images are more than are held before they are spread, so blocks go on where the last lot ended."""
    got = gather(make, len(IMAGES), pixels((1, 1, 2)), batch=batch, blocks=7)
    everything = pixels((1, 1, 2))(IMAGES)
    of = block_of(torch.arange(len(IMAGES)), 7)
    assert [block.count for block in got.blocks] == of.bincount().tolist()
    for k, block in enumerate(got.blocks):
        torch.testing.assert_close(block.mean(), everything[of == k].mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(block.covariance(), torch.cov(everything[of == k].T), rtol=1e-12, atol=1e-14)
    assert got.features is None
    assert got.images is None


@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 500))
def test_blocks_are_a_function_of_the_number_and_as_large_as_each_other(blocks: int, first: int, n: int) -> None:
    index = torch.arange(first, first + n)
    of = block_of(index, blocks)
    counts = Counter(block_of(torch.arange(n), blocks).tolist())
    assert max(counts.values()) - min(counts[k] for k in range(blocks)) <= 1
    some = index[:: max(1, n // 5)].flip(0)
    assert torch.equal(block_of(some, blocks), of[some - first])


def test_blocks_do_not_follow_labels_in_a_regular_order() -> None:
    """Labels 0, 1, ..., 9, 0, ... : every block holds all of them, about as often as the others."""
    n = 10_000
    of, labels = block_of(torch.arange(n), BLOCKS), torch.arange(n) % 10
    table = torch.zeros(BLOCKS, 10).index_put_((of, labels), torch.ones(n), accumulate=True)
    # 40 are expected; with numbers mod 25 there would be 80 of five classes and none of the others.
    assert float(table.min()) > 15
    chi_squared = float(((table - 40) ** 2 / 40).sum())
    freedom = (BLOCKS - 1) * 9
    assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)


def test_intervals_are_the_same_for_samples_in_regular_and_in_random_order() -> None:
    """Ten classes far apart: blocks of few classes would say that another draw lies far away, though each has 1/10 of each."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 256, (10, 1, 1, 3), generator=generator)
    labels = torch.arange(2000) % 10
    images = (classes[labels] + torch.randint(-9, 10, (2000, 1, 1, 3), generator=generator)).clamp(0, 255).to(torch.uint8)
    shuffled = images[torch.randperm(2000, generator=generator)]
    extractor = pixels((1, 1, 3))
    reference = Moments(torch.full((3,), 0.1, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    halves = []
    for x in (images, shuffled):
        metric = frechet_metric(
            gather(lambda a, k, x=x: x[a : a + k], 2000, extractor, batch=64, blocks=BLOCKS).blocks, reference
        )
        assert metric.interval is not None
        halves.append(metric.interval[1] - metric.value)
    assert halves[0] == pytest.approx(halves[1], rel=0.6)


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_of_processes_are_whole_chunks_and_cover_everything(n: int, size: int) -> None:
    shares = [share(n, 32, rank, size) for rank in range(size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == n
    assert shares[0][1] > 0
    assert all(a[1] == b[0] for a, b in zip(shares, shares[1:], strict=False))
    assert all(begin % 32 == 0 or begin == n for begin, _ in shares)
    loads = [-(-(end - begin) // 32) for begin, end in shares]
    assert max(loads) - min(loads) <= 1


def sensitive(chunk: int | None, calls: list[tuple[int, int]] | None = None) -> Extractor:
    """Features that depend on what else is in the batch, as those of a float32 network do in their last bits."""

    def function(images: Tensor) -> Tensor:
        x = images.flatten(1).to(torch.float64)
        if calls is not None:
            calls.append((int(x[0, 0]), len(x)))
        return x / 255 + 1e-3 * x.mean()

    return Extractor("sensitive", "s", 2, function, batch=chunk)


@pytest.mark.parametrize("chunk", [None, 32, 64])
def test_the_batch_changes_nothing_at_all(chunk: int | None) -> None:
    n = 300
    first = gather(make, n, sensitive(chunk), batch=n, blocks=BLOCKS, keep_features=True)
    reference = Moments(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    distance = frechet_distance(joined(first.blocks), reference)
    assert first.features is not None
    for batch in (1, 2, 3, 7, 31, 32, 33, 100, 128, 299, 301, 5000):
        got = gather(make, n, sensitive(chunk), batch=batch, blocks=BLOCKS, keep_features=True)
        assert got.features is not None
        assert torch.equal(got.features, first.features)
        assert frechet_distance(joined(got.blocks), reference) == pytest.approx(distance, rel=1e-12)


def test_the_extractor_sees_whole_chunks() -> None:
    calls: list[tuple[int, int]] = []
    gather(make, 75, sensitive(None, calls), batch=50, blocks=2)
    assert [count for _, count in calls] == [CHUNK, CHUNK, 75 - 2 * CHUNK]
    assert [value for value, _ in calls] == [int(IMAGES[k, 0, 0, 0]) for k in (0, CHUNK, 2 * CHUNK)]


def test_what_is_kept_is_in_order() -> None:
    got = gather(make, 100, pixels((1, 1, 2)), batch=33, keep_features=True, keep_images=True)
    assert got.blocks == ()
    assert got.images is not None
    assert got.features is not None
    assert torch.equal(got.images, IMAGES[:100])
    assert torch.equal(got.features, pixels((1, 1, 2))(IMAGES[:100]))


def test_features_are_float32_or_float64_and_computed_where_asked() -> None:
    seen: list[str] = []

    def half(images: Tensor) -> Tensor:
        seen.append(images.device.type)
        return images.flatten(1).to(torch.float16)

    got = gather(make, 10, Extractor("half", "", 2, half), batch=4, keep_features=True, device="cpu")
    assert got.features is not None
    assert got.features.dtype == torch.float32
    assert set(seen) == {"cpu"}


def test_features_are_not_computed_in_vain() -> None:
    def refuse(images: Tensor) -> Tensor:
        raise AssertionError("nothing asked for features")

    assert gather(make, 10, Extractor("none", "", 1, refuse), batch=4, keep_images=True).images is not None


def test_progress_counts_images() -> None:
    told: list[tuple[int, int]] = []
    gather(make, 10, pixels((1, 1, 2)), batch=4, blocks=1, callback=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_what_cannot_be_gathered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expected 4 uint8 images"):
        gather(lambda first, count: IMAGES[:3], 10, pixels((1, 1, 2)), batch=4, blocks=1)
    with pytest.raises(InputError, match="at least 1, got 0 and 4"):
        gather(make, 0, pixels((1, 1, 2)), batch=4)
    with pytest.raises(InputError, match="at least 1, got 4 and 0"):
        gather(make, 4, pixels((1, 1, 2)), batch=0)
    monkeypatch.setattr(limits, "memory_bytes", lambda: 1 << 30)
    with pytest.raises(InputError, match=r"12,288 features \(pixels\) in 25 blocks would need .* use an extractor with fewer"):
        gather(make, 4, pixels((3, 64, 64)), batch=4, blocks=25)


def test_statistics_of_nothing_join_nothing() -> None:
    part = FeatureStatistics(2)
    part.update(torch.zeros(0, 2))
    assert part.count == 0
