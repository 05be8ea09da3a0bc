"""The judge of digits: it lets the digits pass, and every kind of bad sampler fails by the measure meant for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8, to_uint8
from atonce.data.sources import open_data
from atonce.evaluation.digits import COUNT, HALF_SPLIT_DISTANCE, half_split_distance, judge_digits


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_digits() -> Tensor:
    return open_data("digits", split="all").images


def test_the_denominator() -> None:
    assert half_split_distance() == pytest.approx(HALF_SPLIT_DISTANCE, rel=1e-9)
    assert 0.28 <= HALF_SPLIT_DISTANCE <= 0.31


def test_the_order_of_the_data_set_would_have_given_a_larger_one() -> None:
    from atonce.evaluation.digits import _features, _statistics
    from atonce.evaluation.frechet import frechet_distance

    features = _features(all_digits())
    assert frechet_distance(_statistics(features[: COUNT // 2]), _statistics(features[COUNT // 2 :])) > 2 * HALF_SPLIT_DISTANCE


def test_a_random_80_percent_of_the_digits() -> None:
    digits = all_digits()
    verdict = judge_digits(digits[torch.randperm(COUNT, generator=generator())[:1437]])
    assert verdict.ratio < 0.5
    assert verdict.confidence > 0.97
    assert verdict.strict_confidence > 0.97
    assert all(0.05 <= share <= 0.15 for share in verdict.class_shares)
    assert verdict.samples == 1437


def test_a_perfect_sampler_has_half_the_ratio() -> None:
    """1,797 independent draws (of the digits themselves, with repetition) against all digits."""
    digits = all_digits()
    ratios = [judge_digits(digits[torch.randint(COUNT, (COUNT,), generator=generator(s))]).ratio for s in range(3)]
    assert sum(ratios) / 3 < 0.6


def test_unseen_digits_with_a_little_noise_pass() -> None:
    """A sampler near the held-out digits: passes everything that 360 originals allow."""
    held_out = open_data("digits", split="test").images
    rows = torch.arange(COUNT) % len(held_out)
    noisy = from_uint8(held_out[rows]) + 0.05 * torch.randn((COUNT, 1, 8, 8), generator=generator())
    verdict = judge_digits(to_uint8(noisy))
    assert verdict.passes("demo"), verdict.shortfalls("demo")
    assert verdict.neighbour_ratio == pytest.approx(1.0, abs=0.1)


def test_noise_fails() -> None:
    verdict = judge_digits(to_uint8(torch.randn((COUNT, 1, 8, 8), generator=generator())))
    assert verdict.ratio > 20
    assert verdict.confidence < 0.85
    assert verdict.strict_confidence < 0.05
    assert not verdict.passes("demo")


def test_blurred_means_fail_by_confidence() -> None:
    digits = from_uint8(all_digits())
    mixed = (digits + digits[torch.randperm(COUNT, generator=generator())]) / 2
    verdict = judge_digits(to_uint8(mixed))
    assert verdict.confidence < 0.85
    assert verdict.strict_confidence < 0.5
    assert verdict.ratio > 2
    assert not verdict.passes()


def test_copies_fail_by_neighbours() -> None:
    training = open_data("digits", split="train").images
    verdict = judge_digits(training[torch.randint(len(training), (COUNT,), generator=generator())])
    assert verdict.neighbour_ratio == 0.0
    assert verdict.ratio < 0.9
    assert [text for text in verdict.shortfalls("gallery") if "neighbour" in text]
    assert not verdict.passes("demo")


def test_one_class_fails_by_shares() -> None:
    data = open_data("digits", split="all")
    assert data.labels is not None
    ones = data.images[data.labels == 1]
    verdict = judge_digits(ones[torch.randint(len(ones), (COUNT,), generator=generator())])
    assert verdict.class_shares[1] > 0.9
    assert len([text for text in verdict.shortfalls() if "of the samples are" in text]) == 10


def test_too_few_samples_do_not_pass() -> None:
    verdict = judge_digits(all_digits()[:500])
    assert any("500 samples" in text for text in verdict.shortfalls())


@pytest.mark.parametrize(
    "samples", [torch.zeros(9, 1, 8, 8), torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)]
)
def test_bad_samples_are_named(samples: Tensor) -> None:
    with pytest.raises(InputError, match="at least 2 uint8 images"):
        judge_digits(samples)
