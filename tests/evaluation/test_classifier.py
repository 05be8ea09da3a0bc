"""The classifier of a data set: it learns, repeats, is kept safely, and is unsure of what is no image of its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.errors import DataError, InputError
from atonce.core.images import from_uint8, to_uint8
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation import classifier as module
from atonce.evaluation.classifier import (
    FEATURES,
    Classifier,
    cache_folder,
    class_shares,
    classifier,
    classifier_extractor,
    confidence,
    confident_share,
    label_accuracy,
)
from atonce.evaluation.frechet import FeatureStatistics, frechet_distance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def held_out() -> ImageData:
    return open_data("digits", split="test")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """The classifier of digits; the first test that asks for it waits some four seconds."""
    return classifier(open_data("digits"), cache=tmp_path_factory.mktemp("cache"))


def spots(count: int = 120, side: int = 6, classes: int = 3, seed: int = 0) -> ImageData:
    """Noise with a bright row that tells the class: learned in a moment."""
    labels = torch.arange(count) % classes
    images = torch.randint(0, 100, (count, 1, side, side), generator=generator(seed), dtype=torch.uint8)
    images[torch.arange(count), 0, labels] = 255
    return ImageData(images, labels, name="spots")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Trainings of 30 steps; the call forgets what is in memory."""
    whole = module._definition
    monkeypatch.setattr(module, "_definition", lambda data, seed: whole(data, seed) | {"images": 30 * 64})
    monkeypatch.setattr(module, "_trained", {})
    return module._trained.clear


def distance(judge: Classifier, images: Tensor, others: Tensor) -> float:
    parts = []
    for part in (images, others):
        found = FeatureStatistics(FEATURES)
        found.update(judge.features(part))
        parts.append(found)
    return frechet_distance(*parts)


# --- what it learns ---------------------------------------------------------------------------------------------------------


def test_it_knows_digits_it_has_not_seen(judge: Classifier, held_out: ImageData) -> None:
    assert held_out.labels is not None
    assert label_accuracy(judge, held_out.images, held_out.labels) >= 0.97
    assert judge.accuracy >= 0.97
    # Asked for the next digit, almost no sample is what it was asked to be; a tenth would be by chance with random labels.
    assert label_accuracy(judge, held_out.images, (held_out.labels + 1) % 10) < 0.02
    shares = torch.tensor(class_shares(judge, held_out.images))
    torch.testing.assert_close(shares, held_out.labels.bincount() / len(held_out), atol=0.02, rtol=0)
    assert class_shares(judge, held_out.images[held_out.labels == 7])[7] > 0.9


def test_probabilities_are_calibrated(judge: Classifier, held_out: ImageData) -> None:
    probabilities = judge.probabilities(held_out.images)
    assert probabilities.shape == (360, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(360, dtype=torch.float64))
    assert held_out.labels is not None
    log_loss = -probabilities[torch.arange(360), held_out.labels].log().mean()
    assert log_loss < 0.15
    assert 0.5 < judge.temperature < 2.0


def test_the_temperature_undoes_a_scale() -> None:
    """Labels drawn from softmax(z): logits 3 z need the temperature 3, logits z / 2 the temperature 1/2."""
    z = 2 * torch.randn((4000, 5), generator=generator(), dtype=torch.float64)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator(1))[:, 0]
    assert module._temperature(3 * z, labels) == pytest.approx(3.0, rel=0.06)
    assert module._temperature(0.5 * z, labels) == pytest.approx(0.5, rel=0.06)


def test_features_tell_how_far_images_are_from_digits(judge: Classifier, held_out: ImageData) -> None:
    """Real against real is near zero; noise and blur move away, the more the farther."""
    images = open_data("digits").images
    floor = distance(judge, images[:718], images[718:])
    noise = torch.randn(held_out.images.shape, generator=generator())
    real = from_uint8(held_out.images)
    noisy = [distance(judge, to_uint8(real + level * noise), held_out.images) for level in (0.1, 0.3, 0.6, 1.0)]
    assert 0 < noisy[0] < noisy[1] < noisy[2] < noisy[3]
    blurred, blurs = held_out.images.float(), []
    for _ in range(4):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, 1)
        blurs.append(distance(judge, blurred.round().to(torch.uint8), held_out.images))
    assert 0 < blurs[0] < blurs[1] < blurs[2] < blurs[3]
    uniform = torch.randint(0, 256, held_out.images.shape, generator=generator(), dtype=torch.uint8)
    assert floor < 0.08 * min(noisy[3], blurs[3], distance(judge, uniform, held_out.images))
    assert distance(judge, images, held_out.images) < 0.08 * noisy[3]


def test_features_span_their_space(judge: Classifier) -> None:
    """No feature is dead: the covariance that the distance takes a root of has full rank."""
    spectrum = torch.linalg.eigvalsh(judge.features(open_data("digits").images).double().T.cov())
    assert spectrum[0] > 1e-7 * spectrum[-1]


def test_it_is_sure_of_digits_and_of_nothing_else(judge: Classifier, held_out: ImageData) -> None:
    images = held_out.images
    assert confidence(judge, images, images) == 1.0
    assert confident_share(judge, images) > 0.85
    n, shape = 500, (500, *judge.shape)
    noise = torch.randn(shape, generator=generator(3))
    rows = torch.randint(len(images), (2, n), generator=generator(4))
    kinds = {
        "uniform noise": torch.randint(0, 256, shape, generator=generator(5), dtype=torch.uint8),
        "normal noise": to_uint8(noise),
        "faint noise": to_uint8(0.3 * noise),
        "black and white": (noise > 0).to(torch.uint8) * 255,
        "smooth noise": to_uint8(2 * F.avg_pool2d(noise, 3, 1, 1)),
        "one grey": torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, *judge.shape),
        "shuffled digits": images.flatten(1)[:, torch.randperm(64, generator=generator(6))].reshape(images.shape),
    }
    for name, kind in kinds.items():
        assert confidence(judge, kind, images) < 0.05, name
    averages = ((images[rows[0]].int() + images[rows[1]].int()) // 2).to(torch.uint8)
    assert confidence(judge, averages, images) < 0.4  # a tenth are of one class


# --- repeating --------------------------------------------------------------------------------------------------------------


def test_two_trainings_are_equal(quick: Callable[[], None], tmp_path: Path) -> None:
    """Bit for bit: whatever the threads, the gradient mode, the precision and the global random state around it."""
    first = classifier(spots(), cache=tmp_path / "a")
    before = torch.random.get_rng_state()
    quick()
    torch.set_num_threads(2)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.set_default_dtype(torch.float64)
        second = classifier(spots(), cache=tmp_path / "b")
        features = second.features(spots().images)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert second is not first
    assert second.digest == first.digest
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, first.features(spots().images), atol=1e-5, rtol=1e-5)
    assert classifier(spots(), seed=1).digest != first.digest
    assert classifier(spots(seed=1)).digest != first.digest


def test_features_do_not_depend_on_the_batch(judge: Classifier, held_out: ImageData) -> None:
    whole = judge.features(held_out.images)
    parts = torch.cat([judge.features(part) for part in held_out.images.split(7)])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    assert judge.features(held_out.images[:0]).shape == (0, FEATURES)


def test_held_out_images_are_a_tenth_of_each_class() -> None:
    data = open_data("digits")
    training, held_out = module._split(data, 0)
    assert torch.equal(torch.cat([training, held_out]).sort().values, torch.arange(len(data)))
    assert data.labels is not None
    expected = -(-data.labels.bincount() // 10)
    assert torch.equal(data.labels[held_out].bincount(), expected)
    assert not torch.equal(held_out.sort().values, module._split(data, 1)[1].sort().values)


def test_outliers_are_what_they_are_called() -> None:
    images = torch.randint(0, 256, (32, 3, 4, 5), generator=generator(), dtype=torch.uint8)
    targets = F.one_hot(torch.arange(32) % 4, 4).float()
    more, asked = module._with_outliers(images, targets, generator(1))
    assert more.shape == (38, 3, 4, 5)
    torch.testing.assert_close(asked.sum(1), torch.ones(38))
    assert torch.equal(more[:32], images)
    assert torch.equal(asked[32:36], torch.full((4, 4), 0.25))
    # Shuffled pixels: the same pixels with their colours together, elsewhere.
    for shuffled, original in zip(more[34:36], images[4:6], strict=True):
        pixels = [sorted(map(tuple, image.flatten(1).T.tolist())) for image in (shuffled, original)]
        assert pixels[0] == pixels[1]
        assert not torch.equal(shuffled, original)
    assert torch.equal(more[36].int(), (images[0].int() + images[2].int()) // 2)
    assert asked[36].tolist() == [0.5, 0.0, 0.5, 0.0]


# --- keeping ----------------------------------------------------------------------------------------------------------------


def test_it_is_kept(quick: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = classifier(spots())
    assert classifier(spots()).weights is first.weights
    (path,) = (tmp_path / "classifiers").iterdir()
    quick()
    monkeypatch.setattr(module, "_fit", None)  # whoever trains now, fails
    again = classifier(dataclasses.replace(spots(), name="other name"))
    assert (again.digest, again.accuracy, again.temperature) == (first.digest, first.accuracy, first.temperature)
    assert again.name == "other name"
    assert torch.equal(again.probabilities(spots().images), first.probabilities(spots().images))
    assert [path] == list((tmp_path / "classifiers").iterdir())


@pytest.mark.parametrize("harm", ["cut", "empty", "no safetensors", "one bit", "one number"])
def test_a_damaged_file_is_replaced(harm: str, quick: Callable[[], None], tmp_path: Path) -> None:
    first = classifier(spots())
    (path,) = (tmp_path / "classifiers").iterdir()
    sound = path.read_bytes()
    path.write_bytes(
        {
            "cut": sound[:-100],
            "empty": b"",
            "no safetensors": b"nothing of the kind",
            "one bit": sound[:-1] + bytes([sound[-1] ^ 1]),
            "one number": sound.replace(b'temperature\\": ', b'temperature\\":9'),
        }[harm]
    )
    assert path.read_bytes() != sound
    quick()
    with pytest.warns(UserWarning, match="cannot be used .* it is trained again"):
        second = classifier(spots())
    assert second.digest == first.digest
    assert path.read_bytes() == sound


def test_without_a_place_to_keep_it(quick: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="spots is not kept: cannot write"):
        found = classifier(spots(), cache=tmp_path / "file")
    assert found.accuracy > 0.5


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ATONCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/atonce")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path.home() / ".cache" / "atonce"


# --- any small data set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32), (1, 7, 13), (3, 64, 20)])
def test_any_small_shape(shape: tuple[int, int, int], quick: Callable[[], None]) -> None:
    images = torch.randint(0, 256, (100, *shape), generator=generator(), dtype=torch.uint8)
    found = classifier(ImageData(images, torch.arange(100) % 2, name="shapes"))
    assert found.features(images).shape == (100, FEATURES)
    assert found.shape == shape


def test_as_an_extractor(quick: Callable[[], None]) -> None:
    extractor = classifier_extractor(spots())
    found = classifier(spots())
    assert (extractor.name, extractor.dimension, extractor.digest) == ("classifier of spots", FEATURES, found.digest)
    assert torch.equal(extractor(spots().images), found.features(spots().images))
    assert not extractor.source().seen_in_training


def test_classes_that_do_not_occur(quick: Callable[[], None]) -> None:
    """A name without an image is a class that nothing is."""
    data = dataclasses.replace(spots(), label_names=("a", "b", "c", "never"))
    found = classifier(data)
    assert found.classes == 4
    assert class_shares(found, data.images)[3] == 0.0


# --- bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spots().without_labels(), "spots has no labels: sort the pictures"),
        (spots(classes=1), "spots has the single class 0"),
        (spots(99), "spots has 99 images, 33 of its rarest class: a classifier needs at least 100, and 10 of every class"),
        (spots(102, side=12, classes=12), "spots has 102 images, 8 of its rarest class"),
        (spots(side=3), "spots has images of 3 x 3 pixels, a classifier is made for sides of 4 to 64 pixels: give a size"),
        (spots(side=65), "images of 65 x 65 pixels"),
    ],
)
def test_data_that_cannot_be_learned(data: ImageData, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        classifier(data)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 1 << 63, 0.5, None])
def test_seeds_that_are_none(seed: int) -> None:
    with pytest.raises(InputError, match="must be a whole number from 0 to"):
        classifier(spots(), seed=seed)


def test_images_and_labels_that_do_not_fit(quick: Callable[[], None]) -> None:
    found, images = classifier(spots()), spots().images
    with pytest.raises(InputError, match=r"of spots takes uint8 images \[B, C, H, W\] of \[1, 6, 6\], got torch.float32"):
        found.features(images.float())
    with pytest.raises(InputError, match=r"got torch.uint8 \[120, 1, 5, 6\]"):
        found.probabilities(images[:, :, 1:])
    with pytest.raises(InputError, match="at least one"):
        confident_share(found, images[:0])
    with pytest.raises(InputError, match=r"whole numbers for 120 images, got torch.int64 \[1\]"):
        label_accuracy(found, images, [0])
    with pytest.raises(InputError, match=r"got torch.float32"):
        label_accuracy(found, images, torch.zeros(120))
    with pytest.raises(InputError, match="between 0 and 2, got 0 to 3"):
        label_accuracy(found, images, torch.arange(120) % 4)
    with pytest.raises(InputError, match="at least one"):
        class_shares(found, images[:0])
    unsure = dataclasses.replace(found, temperature=1e6)
    with pytest.raises(InputError, match="is sure of no real image"):
        confidence(unsure, images, images)


# --- real data --------------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fashion(data_root: Path) -> None:
    """The whole training on 14x14 pixels: about a minute of one processor."""
    train, test = (open_data(data_root / "fashion-mnist", size=14, split=split) for split in ("train", "test"))
    found = classifier(train, quiet=True)
    assert test.labels is not None
    assert label_accuracy(found, test.images, test.labels) >= 0.88
    assert abs(label_accuracy(found, test.images, test.labels) - found.accuracy) < 0.02
    noise = torch.randint(0, 256, (1000, 1, 14, 14), generator=generator(), dtype=torch.uint8)
    assert confidence(found, noise, test.images) < 0.02
    halves = distance(found, train.images[:5000], train.images[5000:10_000])
    noisy = to_uint8(from_uint8(test.images) + 0.3 * torch.randn(test.images.shape, generator=generator()))
    assert halves < 0.02 * distance(found, noisy, test.images)
