"""Batches: the same values from data on the device and from data that stream."""

from __future__ import annotations

import threading

import pytest
import torch

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.data.augment import flip
from atonce.data.dataset import ImageData
from atonce.data.loader import DeviceData
from atonce.data.order import epoch_index


@pytest.fixture
def data():
    images = torch.randint(0, 256, (23, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(images, torch.arange(23) % 4)


def same(found, expected):
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])


def test_a_batch_is_what_order_flip_and_scale_say(data):
    source = DeviceData(data, seed=7, flip=True)
    assert source.resident
    x, labels = source.batch(20, 10)  # across the end of an epoch
    place = epoch_index(7, 20, 10, 23)
    assert torch.equal(labels, data.labels[place])
    assert torch.equal(x, from_uint8(flip(data.images[place], 7, torch.arange(20, 30))))
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (10, 3, 4, 5))
    plain, _ = DeviceData(data, seed=7).batch(20, 10)
    assert torch.equal(plain, from_uint8(data.images[place]))
    assert DeviceData(data.without_labels(), seed=7).batch(0, 4)[1] is None


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("mirrored", [True, False])
def test_streamed_data_give_the_same(data, prefetch, mirrored):
    resident = DeviceData(data, seed=1, flip=mirrored)
    streamed = DeviceData(data, seed=1, flip=mirrored, limit=100, prefetch=prefetch)
    assert not streamed.resident
    requests = [(0, 8), (8, 8), (16, 8), (24, 8), (24, 8), (3, 5), (8, 5), (100, 1), (101, 1), (0, 0), (5, 8)]
    for request in requests:
        same(streamed.batch(*request), resident.batch(*request))
    streamed.close()
    same(streamed.batch(2, 3), resident.batch(2, 3))


def test_stripes_of_processes_make_up_the_batch(data):
    whole = DeviceData(data, seed=2, flip=True).batch(16, 8)
    for limit in (1 << 30, 0):
        parts = []
        for rank in range(2):
            source = DeviceData(data, seed=2, flip=True, limit=limit)
            for step in range(3):
                part = source.batch(torch.arange(8 * step + rank, 8 * step + 8, 2))
            parts.append(part)
        same((torch.stack([p[0] for p in parts], 1).flatten(0, 1), torch.stack([p[1] for p in parts], 1).flatten()), whole)


@pytest.mark.parametrize(
    "stripe", [lambda k: torch.arange(8 * k, 8 * k + 8), lambda k: torch.arange(16 * k + 1, 16 * k + 17, 2)]
)
def test_the_next_batch_is_gathered_ahead(data, stripe, monkeypatch):
    source = DeviceData(data, seed=2, limit=0)
    threads = []
    gather = source._gather
    monkeypatch.setattr(source, "_gather", lambda index: (threads.append(threading.current_thread().name), gather(index))[1])
    for k in range(5):
        source.batch(stripe(k))
    source.close()
    assert sum(name == "MainThread" for name in threads) == 1  # only the first
    assert all(name.startswith("atonce-prefetch") for name in threads[1:])


def test_failure_in_the_thread_comes_out(data, monkeypatch):
    source = DeviceData(data, seed=2, limit=0)
    source.batch(0, 4)
    source._ahead[1].result()

    def broken(index):
        raise OSError("the file is gone")

    monkeypatch.setattr(source, "_gather", broken)
    source.batch(4, 4)  # gathered before; the next one fails in the thread
    with pytest.raises(OSError, match="gone"):
        source.batch(8, 4)


@pytest.mark.parametrize("request_", [(torch.arange(3), 2), (3,), (3, -1), (-1, 3), (torch.tensor([-1]),)])
def test_unclear_requests_are_refused(data, request_):
    with pytest.raises(InputError):
        DeviceData(data, seed=0).batch(*request_)


@pytest.mark.cuda
@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_gpu_gives_the_same(data, limit):
    here, there = DeviceData(data, seed=1, flip=True), DeviceData(data, seed=1, flip=True, device="cuda", limit=limit)
    for first in range(0, 400, 8):
        found = there.batch(first, 8)
        assert found[0].is_cuda
        same(found, here.batch(first, 8))
