"""Random streams: the published answers of Philox, and that a number depends on nothing but seed, index, purpose and step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, bits, dropout_masks, normal, permutation, philox, uniform

_MASK = 0xFFFFFFFF


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def _reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 once more, with Python's whole numbers, which do not wrap."""
    x, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b & _MASK, (a >> 32) ^ x[3] ^ k[1], a & _MASK]
        k = [(k[0] + 0x9E3779B9) & _MASK, (k[1] + 0xBB67AE85) & _MASK]
    return x


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in _words(counter))
    k0, k1 = _words(key)
    assert [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))] == _words(answer)
    assert _reference(_words(counter), _words(key)) == _words(answer)


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    index=st.integers(0, 2**63 - 1),
    stream=st.sampled_from(list(Stream)),
    step=st.integers(0, 2**24 - 1),
)
def test_layout_of_counter_and_key(seed: int, index: int, stream: Stream, step: int) -> None:
    """key = seed, counter = (block, index low, index high, stream and step): published numbers hang on this layout."""
    drawn = bits(seed, torch.tensor([index]), 6, stream, step)[0].tolist()
    key = [seed & _MASK, (seed >> 32) & _MASK]
    expected = [
        word for block in (0, 1) for word in _reference([block, index & _MASK, index >> 32, (stream << 24) | step], key)
    ]
    assert drawn == expected[:6]


def test_one_seed_for_each_sample() -> None:
    seeds = torch.tensor([5, -3, 2**40 + 1])
    together = bits(seeds, torch.tensor([1, 2, 3]), 5, Stream.SAMPLE, 2)
    for row, (seed, index) in zip(together, ((5, 1), (-3, 2), (2**40 + 1, 3)), strict=True):
        assert torch.equal(row, bits(seed, torch.tensor([index]), 5, Stream.SAMPLE, 2)[0])


@pytest.mark.parametrize("step", [-1, 1 << 24])
def test_a_step_that_would_run_into_another_stream_is_refused(step: int) -> None:
    with pytest.raises(InputError, match=f"step is {step}"):
        bits(0, torch.arange(2), 1, Stream.NOISE, step)


def test_uniform_is_open_and_uniform() -> None:
    u = uniform(11, torch.arange(2000), 50, Stream.SIGMA)
    assert u.dtype == torch.float64
    assert 0 < float(u.min()) < float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01


def test_the_extreme_words_stay_inside_the_open_interval() -> None:
    for word in (0, _MASK):
        u = (torch.tensor(word, dtype=torch.float64) + 0.5) * 2.0**-32
        assert 0 < float(u) < 1


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (1, 4, 4)])
def test_normal_moments(shape: tuple[int, ...]) -> None:
    n = 200_000 // math.prod(shape)
    z = normal(3, torch.arange(n), shape, Stream.NOISE)
    assert z.shape == (n, *shape)
    assert z.dtype == torch.float32
    flat = z.double().flatten()
    sigma = flat.numel() ** -0.5
    assert abs(float(flat.mean())) < 5 * sigma
    assert abs(float((flat**2).mean()) - 1) < 5 * sigma * math.sqrt(2)
    assert abs(float((flat**3).mean())) < 5 * sigma * math.sqrt(15)
    assert abs(float((flat**4).mean()) - 3) < 5 * sigma * math.sqrt(96)
    assert stats.kstest(flat.numpy(), "norm").pvalue > 0.01


def test_neighbouring_numbers_and_samples_are_uncorrelated() -> None:
    z = normal(0, torch.arange(20_000), (8,), Stream.NOISE).double()
    correlation = torch.corrcoef(z.T) - torch.eye(8, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)
    assert abs(float((z[:-1, 0] * z[1:, 0]).mean())) < 5 / math.sqrt(20_000)


def _correlation(a: Tensor, b: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]))


def test_seeds_streams_and_steps_are_independent() -> None:
    index = torch.arange(500)
    base = normal(0, index, (20,), Stream.NOISE)
    others = {stream.name: normal(0, index, (20,), stream) for stream in Stream if stream is not Stream.NOISE}
    others |= {"step": normal(0, index, (20,), Stream.NOISE, 1), "seed": normal(1, index, (20,), Stream.NOISE)}
    others["high seed"] = normal(1 << 32, index, (20,), Stream.NOISE)
    others["high index"] = normal(0, index + (1 << 32), (20,), Stream.NOISE)
    for name, other in others.items():
        assert _correlation(base, other) < 5 / math.sqrt(10_000), name


@given(st.integers(0, 2**40), st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**40))
def test_a_batch_may_be_split_anywhere(seed: int, parts: list[int], first: int) -> None:
    index = torch.arange(first, first + sum(parts))
    whole = normal(seed, index, (2, 3), Stream.NOISE)
    assert torch.equal(whole, torch.cat([normal(seed, part, (2, 3), Stream.NOISE) for part in index.split(parts)]))
    assert torch.equal(whole.flip(0), normal(seed, index.flip(0), (2, 3), Stream.NOISE))
    masks = dropout_masks(seed, index, [7, 64], 0.3)
    for i, part in enumerate(index.split(parts)):
        for mask, own in zip(masks, dropout_masks(seed, part, [7, 64], 0.3), strict=True):
            assert torch.equal(mask.split(parts)[i], own)


def test_an_image_of_other_size_starts_alike() -> None:
    """The numbers of one sample are one sequence; asking for more of them does not change the first."""
    index = torch.arange(4)
    assert torch.equal(normal(0, index, (10,), Stream.NOISE), normal(0, index, (16,), Stream.NOISE)[:, :10])


def test_an_empty_index_gives_empty_tensors() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert bits(0, none, 5, Stream.NOISE).shape == (0, 5)
    assert normal(0, none, (1, 4, 4), Stream.NOISE).shape == (0, 1, 4, 4)
    assert [mask.shape for mask in dropout_masks(0, none, [5, 7], 0.3)] == [(0, 5), (0, 7)]
    assert normal(0, torch.arange(3), (0,), Stream.NOISE).shape == (3, 0)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    normal(0, torch.arange(3), (4,), Stream.NOISE)
    dropout_masks(0, torch.arange(3), [4], 0.5)
    permutation(0, 0, 10)
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 300))
def test_permutation_is_one(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert torch.equal(order.sort().values, torch.arange(n))
    assert torch.equal(order, permutation(seed, epoch, n))


def test_permutations_differ_and_are_fair() -> None:
    orders = torch.stack([permutation(0, epoch, 12) for epoch in range(600)])
    counts = torch.stack([torch.bincount(orders[:, place], minlength=12) for place in range(12)])
    assert stats.chi2.sf(float(((counts - 50) ** 2 / 50).sum()), 121) > 1e-3
    assert not torch.equal(permutation(0, 0, 100), permutation(1, 0, 100))


class TestDropoutMasks:
    @pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
    def test_rate_and_scale(self, p: float) -> None:
        rounded = round(p * 256) / 256
        (mask,) = dropout_masks(1, torch.arange(200), [1000], p)
        assert mask.dtype == torch.float32
        assert set(mask.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - rounded)))}
        error = math.sqrt(rounded * (1 - rounded) / mask.numel())
        assert abs(float((mask == 0).float().mean()) - rounded) < 5 * error
        # The mean over the 256 equally likely bytes is exactly 1, to rounding of the scale.
        assert abs((1 - rounded) * float(mask.max()) - 1) < 1e-6

    def test_no_rate_drops_nothing_and_the_highest_leaves_something(self) -> None:
        (mask,) = dropout_masks(1, torch.arange(4), [100], 0.0)
        assert torch.equal(mask, torch.ones(4, 100))
        (mask,) = dropout_masks(1, torch.arange(200), [1000], 0.9999)
        assert float(mask.max()) == 256.0

    def test_a_function_of_seed_index_and_layer_alone(self) -> None:
        index = torch.tensor([3, 8, 5])
        masks = dropout_masks(2, index, [400, 400], 0.5)
        again = dropout_masks(2, torch.arange(10), [400, 400], 0.5)
        for mask, other in zip(masks, again, strict=True):
            assert torch.equal(mask, other[index])
        other_seed = dropout_masks(3, index, [400, 400], 0.5)
        for a, b in ((masks[0], masks[1]), (masks[0], other_seed[0]), (masks[0][:1], masks[0][1:2])):
            assert _correlation(a, b) < 5 / math.sqrt(400)

    def test_elements_are_independent(self) -> None:
        """Neighbours share one hash of four bytes, so the bytes must be as good as independent."""
        (mask,) = dropout_masks(0, torch.arange(20_000), [16], 0.5)
        correlation = torch.corrcoef(mask.double().T) - torch.eye(16, dtype=torch.float64)
        assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)

    def test_samples_are_independent(self) -> None:
        (mask,) = dropout_masks(0, torch.arange(64), [20_000], 0.3)
        correlation = torch.corrcoef(mask.double()) - torch.eye(64, dtype=torch.float64)
        assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)

    def test_no_layers(self) -> None:
        assert dropout_masks(0, torch.arange(3), [], 0.3) == []
