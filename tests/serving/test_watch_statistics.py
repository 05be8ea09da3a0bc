"""The statistics of a round: values that can be worked out, the stated false-alarm rate, and what each is there to find."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from atonce.core.errors import InputError
from atonce.evaluation.extractors import Extractor, pixels
from atonce.serving.watch_reference import Kept, build_reference
from atonce.serving.watch_statistics import RARE, ROUNDS, STATISTICS, USUAL, Reference, pixel_facts

SIZE, CLASSES = 128, 5
EXTRACTOR = pixels((1, 12, 12))


def made(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of five kinds, each bright at a place of its own, with coarse and fine noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, 4, 4, generator=g) * 0.5
    labels = torch.randint(0, CLASSES, (n,), generator=g)
    coarse[torch.arange(n), 0, labels % 4, labels // 4 * 3] += 2
    x = torch.nn.functional.interpolate(coarse, 12) + 0.1 * torch.randn(n, 1, 12, 12, generator=g)
    return (x * 100 + 128).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def reference() -> Reference:
    return build_reference(*made(2 * ROUNDS * SIZE, 10**6), CLASSES, EXTRACTOR, SIZE)


def beyond(reference: Reference, level: float, images: torch.Tensor, labels: torch.Tensor) -> set[str]:
    values = reference.measure(reference.rows(images, labels, EXTRACTOR))
    found = set()
    for name, value in values.items():
        lower, upper = reference.limits(name, level)
        if (lower is not None and value < lower) or (upper is not None and value > upper):
            found.add(name)
    return found


def test_facts_of_pixels() -> None:
    half = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    half[..., 2:] = 255
    assert pixel_facts(half)[0].tolist() == pytest.approx([0.5, 0.5, 1.0, (4 / 12 + 0) / 2])
    grey = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)
    assert pixel_facts(grey)[0].tolist() == pytest.approx([0.2, 0.0, 0.0, 0.0])


def test_an_unchanged_model_exceeds_its_limits_as_rarely_as_stated(reference: Reference) -> None:
    rounds = 200
    found = [beyond(reference, USUAL, *made(SIZE, 1 + k)) for k in range(rounds)]
    # One of 200 is expected at the stated rate of 0.5 %; 6 or more would be rarer than 1 in 1,000.
    assert sum(map(bool, found)) < 6
    assert not any(beyond(reference, RARE, *made(SIZE, 1 + k)) for k in range(0, rounds, 4))


def noisy(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return (x.float() + 25 * torch.randn(x.shape, generator=g)).clamp(0, 255).to(torch.uint8)


def smooth(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1).to(torch.uint8)


def bright(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (x.float() + 10).clamp(0, 255).to(torch.uint8)


def cut(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 160, 255, x).to(torch.uint8)


def few(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return x[torch.arange(len(x)) % 100]


def one_kind_lost(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.where((labels == 2)[:, None, None, None], x[labels == 3][0], x)


def kinds_exchanged(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    ones, twos = (labels == 1).nonzero()[:, 0], (labels == 2).nonzero()[:, 0]
    count = min(len(ones), len(twos))
    out[ones[:count]], out[twos[:count]] = x[twos[:count]], x[ones[:count]]
    return out


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (noisy, {"outside", "sharpness"}),
        (smooth, {"sharpness", "contrast", "outside", "frechet"}),
        (bright, {"brightness"}),
        (cut, {"saturation"}),
        (few, {"duplicates"}),
        (one_kind_lost, {"duplicates", "labels", "groups"}),
        (kinds_exchanged, {"labels"}),
    ],
)
def test_each_fault_is_found_by_the_statistic_that_is_there_for_it(reference: Reference, change: object, by: set[str]) -> None:
    x, labels = made(SIZE, 77)
    assert not beyond(reference, USUAL, x, labels)
    assert by <= beyond(reference, USUAL, change(x, labels), labels)


def test_all_statistics_are_used_and_have_sound_readings(reference: Reference) -> None:
    assert set(reference.statistics) == set(STATISTICS)
    x, labels = made(SIZE, 78)
    found = reference.read(reference.rows(x, labels, EXTRACTOR))
    assert set(found) == set(STATISTICS)
    values = reference.measure(reference.rows(x, labels, EXTRACTOR))
    for name, reading in found.items():
        assert reading.value == pytest.approx(values[name], abs=1e-12)
        assert reading.interval[0] <= reading.value <= reading.interval[1]
        assert not reading.exceeded
        assert (reading.lower is None) == (STATISTICS[name].sides == "high")
        assert (reading.upper is None) == (STATISTICS[name].sides == "low")
    assert found["frechet"].interval[0] < found["frechet"].interval[1]
    # The scatter that the jackknife sees within a round is that between rounds.
    rounds = [reference.measure(reference.rows(*made(SIZE, 300 + k), EXTRACTOR))["brightness"] for k in range(60)]
    low, high = found["brightness"].interval
    assert (high - low) / 4.1 == pytest.approx(float(np.std(rounds)), rel=0.5)


def test_limits_are_at_least_the_practical_minimum_away(reference: Reference) -> None:
    mean, _, skew = reference.usual["brightness"]
    sharp = dataclasses.replace(reference, usual={**reference.usual, "brightness": (mean, 1e-6, skew)})
    lower, upper = sharp.limits("brightness", USUAL)
    assert (lower, upper) == pytest.approx((mean - 0.01, mean + 0.01))
    wide = dataclasses.replace(reference, usual={**reference.usual, "brightness": (mean, 0.1, 0.0)})
    lower, upper = wide.limits("brightness", 0.05 * len(STATISTICS))
    assert (lower, upper) == pytest.approx((mean - 0.196, mean + 0.196), abs=1e-3)  # the normal's 2.5 % on either side


def test_a_reference_is_kept_and_read_again(reference: Reference, tmp_path: Path) -> None:
    file = tmp_path / "watch" / "one.npz"
    images, labels = made(32, 3)
    Kept(reference, images, labels, 5, "model", "extractor").save(file)
    found = Kept.load(file, "model", "extractor", SIZE)
    assert found is not None
    rows = reference.rows(*made(SIZE, 79), EXTRACTOR)
    assert found.reference.read(rows) == reference.read(rows)
    assert torch.equal(found.repeats, images)
    assert torch.equal(found.labels, labels)
    assert found.seed == 5
    # Of something else, or damaged, it is made again.
    assert Kept.load(file, "other", "extractor", SIZE) is None
    assert Kept.load(file, "model", "other", SIZE) is None
    assert Kept.load(file, "model", "extractor", SIZE + 1) is None
    assert Kept.load(tmp_path / "absent.npz", "model", "extractor", SIZE) is None
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\x80\x04K\x01.", content.replace(b"facts", b"stcaf")):
        file.write_bytes(damaged)
        assert Kept.load(file, "model", "extractor", SIZE) is None


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "evil.npz"
    np.savez(file, facts=np.array([{"format": 1}], dtype=object))
    assert Kept.load(file, "model", "extractor", SIZE) is None


def test_small_features_and_models_without_labels() -> None:
    def corner(images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, ::4, ::4].flatten(1).double()

    tiny = Extractor("corner", "00", 9, corner)
    found = build_reference(made(2 * ROUNDS * 64, 1)[0], None, 0, tiny, 64)
    assert set(STATISTICS) - set(found.statistics) == {"labels", "outside"}
    assert set(found.read(found.rows(made(64, 2)[0], None, tiny))) == set(found.statistics)


def test_too_few_images_are_refused(reference: Reference) -> None:
    with pytest.raises(InputError, match="needs 2048 images, got 100"):
        build_reference(*made(100, 1), CLASSES, EXTRACTOR, SIZE)
    with pytest.raises(InputError, match="for rounds of 128 images, got 64"):
        reference.read(reference.rows(*made(64, 1), EXTRACTOR))
