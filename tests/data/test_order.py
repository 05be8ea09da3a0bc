"""The order of training, and flips: functions of the seed and the global index alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.core.streams import permutation
from atonce.data.augment import flip
from atonce.data.order import epoch_index, positions

SEEDS = st.integers(0, 2**63 - 1)


@given(SEEDS, st.integers(1, 40), st.integers(0, 2000))
def test_every_epoch_visits_each_image_once(seed, n, epoch):
    assert epoch_index(seed, epoch * n, n, n).sort().values.tolist() == list(range(n))


@given(SEEDS, st.integers(1, 40), st.integers(0, 10_000), st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_any_split_of_the_range_gives_the_same(seed, n, first, counts):
    whole = epoch_index(seed, first, sum(counts), n)
    parts = [epoch_index(seed, first + sum(counts[:k]), count, n) for k, count in enumerate(counts)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.dtype == torch.int64
    striped = torch.stack([positions(seed, torch.arange(first + rank, first + 12, 3), n) for rank in range(3)], 1).flatten()
    assert torch.equal(striped, epoch_index(seed, first, 12, n))


def test_it_is_the_permutation_of_the_epoch():
    expected = torch.cat([permutation(5, 0, 7)[3:], permutation(5, 1, 7), permutation(5, 2, 7)[:2]])
    assert torch.equal(epoch_index(5, 3, 13, 7), expected)


def test_orders_differ_between_epochs_and_seeds():
    n = 50
    orders = {tuple(epoch_index(seed, e * n, n, n).tolist()) for seed in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_what_is_returned_is_not_the_cache():
    first = epoch_index(9, 0, 6, 6)
    kept = first.clone()
    first.zero_()
    assert torch.equal(epoch_index(9, 0, 6, 6), kept)


@pytest.mark.parametrize("arguments", [(0, -1, 2, 5), (0, 0, -2, 5), (0, 0, 2, 0)])
def test_impossible_ranges(arguments):
    with pytest.raises(InputError):
        epoch_index(*arguments)


def test_negative_indices():
    with pytest.raises(InputError, match="from 0, not -3"):
        positions(0, torch.tensor([4, -3]), 5)


def test_flips_depend_on_the_index_alone():
    index = torch.arange(400)
    images = torch.randint(0, 256, (400, 2, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = flip(images, 3, index)
    mirrored = (whole == images.flip(3)).flatten(1).all(1)
    same = (whole == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 160 < int(mirrored.sum()) < 240  # four deviations of a fair coin
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    assert torch.equal(flip(images[order], 3, index[order]), whole[order])
    assert torch.equal(torch.cat([flip(images[:7], 3, index[:7]), flip(images[7:], 3, index[7:])]), whole)
    assert not torch.equal(flip(images, 4, index), whole)
    assert torch.equal(flip(images.float(), 3, index), whole.float())
