"""Time points searched by quality: against a closed form, and what is kept of a search."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atonce.core.errors import DataError, InputError
from atonce.core.images import to_uint8
from atonce.core.records import BALANCED, UNIFORM
from atonce.data import limits
from atonce.data.dataset import ImageData
from atonce.evaluation import search as searching
from atonce.evaluation.evaluate import evaluate
from atonce.evaluation.extractors import pixels
from atonce.evaluation.search import search_extractor, search_grid, search_times, store_times, with_times
from atonce.evaluation.shared_noise import SharedNoise
from atonce.evaluation.time_points import FILE, holds_model
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.model_files import model_identity, weights_digest
from atonce.networks.unet import UNetConfig
from atonce.noise.worlds import Gaussian
from atonce.preconditioning import Preconditioning

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
LABELLED = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=3)
S, BETA, END, FIRST, D = 0.2, 0.3, 0.002, 80.0, 64
EDM = Preconditioning("boundary", S, END)


def gain(sigma: Any) -> Any:
    """Slope of the exact consistency function of N(0, S^2)."""
    return ((S**2 + END**2) / (S**2 + sigma**2)) ** 0.5


class Wrong(nn.Module):
    """F such that f(x, sigma) = a x + BETA (1 - a)^2, a = gain(sigma): the exact one and an error that grows with sigma."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(offset))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        sigma = (4 * c_noise.double()).exp()
        c_skip, c_out, c_in, _ = (c.reshape(-1, 1, 1, 1) for c in EDM.coefficients(sigma))
        y, a = x.double() / c_in, gain(sigma).reshape(-1, 1, 1, 1)
        shift = 0.0 if label is None else 0.1 * (label.double() - 1).reshape(-1, 1, 1, 1)
        return ((a * y + BETA * (1 - a) ** 2 + shift + self.a.double() - c_skip * y) / c_out).to(x.dtype)


def model(network: UNetConfig = NETWORK, **changes: Any) -> ConsistencyModel:
    return ConsistencyModel(ModelConfig(network, EDM, **changes), Wrong())


def closed_form(sigma: float) -> float:
    """The Fréchet distance of two steps, restarted at sigma, from N(0, S^2): the errors of both steps, in closed form.

    The first step leaves the mean b(T) and the variance (a(T) T)^2; the second maps them by a(sigma) and adds b(sigma).
    """
    b = lambda s: BETA * (1 - gain(s)) ** 2
    mean = gain(sigma) * b(FIRST) + b(sigma)
    variance = gain(sigma) ** 2 * ((gain(FIRST) * FIRST) ** 2 + sigma**2 - END**2)
    return D * (mean**2 + (variance**0.5 - S) ** 2)


# The mean is least where its derivative in a is 0: a = 1 - b(T) / (2 BETA), close to a half, so sigma close to S sqrt(3).
A = 1 - (1 - gain(FIRST)) ** 2 / 2
BEST = math.sqrt((S**2 + END**2) / A**2 - S**2)

DATA = ImageData(to_uint8(Gaussian(0.0, S).sample(6000, 1, shape=(1, 8, 8))), name="gaussian")
MODEL = model()


# ---- the oracle


def test_the_curve_is_the_closed_form_and_its_lowest_point_is_found() -> None:
    assert pytest.approx(S * math.sqrt(3), rel=0.01) == BEST
    found = search_times(MODEL, DATA, 2, method="scan", grid=25, n=3000, seed=5)
    for point in found.curve:
        # Finite samples add D S^2 (1/n + 1/m) at the mean alone; the draw moves the mean by a few times 2 b S sqrt(D/n)/D.
        assert point.metric.value == pytest.approx(closed_form(point.sigmas[1]), abs=0.05 + 0.01 * closed_form(point.sigmas[1]))
        assert point.metric.interval[0] <= point.metric.value <= point.metric.interval[1]
    levels = search_grid(MODEL, 25)
    nearest = sorted(levels, key=lambda s: abs(math.log(s / BEST)))[:2]
    assert found.found.sigmas[1] in nearest
    for method in ("golden", "ternary"):
        other = search_times(MODEL, DATA, 2, method=method, grid=levels, n=3000, seed=5)
        assert other.found == found.found  # the same noise: the same values, and one valley
        assert len(other.curve) <= 10


def test_a_bad_default_is_improved_and_the_gain_has_an_interval() -> None:
    bad = model(time_points={2: (FIRST, 20.0)})
    found = search_times(bad, DATA, n=1000)
    assert found.before.sigmas == (FIRST, 20.0)
    assert found.improved
    # Of other noise than the one by which it was chosen.
    other = search_times(bad, DATA, method="scan", grid=[found.found.sigmas[1]], n=1000, seed=1)
    assert found.gain.value == pytest.approx(other.before.metric.value - other.found.metric.value, rel=1e-9)
    assert found.gain.value != pytest.approx(found.before.metric.value - found.found.metric.value, rel=1e-6)
    assert (found.sure, found.verdict, found.gain_seed) == (True, "a sure gain", 1)
    assert found.as_dict()["gain"]["seed"] == 1
    assert found.as_dict()["sure"] is True
    assert 0 < found.gain.interval[0] < closed_form(20.0) - closed_form(BEST) < found.gain.interval[1] + 0.1
    assert found.found.metric.interval[1] < found.before.metric.interval[0]
    assert found.found.sigmas[1] == pytest.approx(BEST, rel=0.15)
    assert found.record.steps == found.record.calls == 2
    assert found.record.metrics["frechet"] == found.found.metric


def test_a_gain_by_chance_is_not_sure() -> None:
    # A model whose second step changes nothing that could be measured: choices differ by noise alone.
    flat = ConsistencyModel(ModelConfig(NETWORK, EDM, time_points={2: (FIRST, BEST)}), Wrong())
    unsure = 0
    for seed in range(0, 12, 2):
        found = search_times(flat, DATA, method="scan", grid=[BEST * 0.99, BEST * 1.002, BEST * 1.01], n=60, seed=seed)
        facts = found.as_dict()
        if not found.improved:
            assert (found.gain, found.sure, facts["verdict"]) == (None, False, "no better than what the model uses")
        elif found.gain.interval[0] <= 0:
            unsure += 1
            assert not found.sure
            assert facts["sure"] is False
            assert facts["verdict"] in ("no sure gain: 0 lies inside its interval", "no gain: with other noise it is worse")
    assert unsure


@pytest.mark.parametrize("network", [NETWORK, LABELLED])
def test_the_record_says_how_the_samples_were_made(network: UNetConfig) -> None:
    made = model(network)
    found = search_times(made, DATA, n=60, grid=3)
    record = evaluate(made, DATA, n=60, metrics=("frechet",), sigmas=found.found.sigmas)
    assert found.record.model == record.model == model_identity(made)
    assert found.record.sigmas == record.sigmas == found.found.sigmas
    assert found.record.labels == record.labels == (UNIFORM if network.labels else None)
    assert (found.record.steps, found.record.calls, found.record.guidance) == (2, 2, None)
    assert (record.steps, record.calls) == (2, 2)
    if network.labels:
        one = search_times(made, DATA, n=60, grid=3, labels=2)
        assert one.record.labels == "all 2"
        even = search_times(made, DATA, n=60, grid=3, labels="balanced")
        assert even.record.labels == BALANCED
        assert one.record.metrics["frechet"].value > even.record.metrics["frechet"].value


def test_guidance_doubles_the_calls_and_stands_in_the_record() -> None:
    made = model(LABELLED, guidance=Guidance("free"))
    found = search_times(made, DATA, n=60, grid=3, guidance=2.0)
    record = evaluate(made, DATA, n=60, metrics=("frechet",), sigmas=found.found.sigmas, guidance=2.0)
    assert found.record.guidance == record.guidance == 2.0
    assert found.record.calls == record.calls == 4
    plain = search_times(made, DATA, n=60, grid=3)
    assert (plain.record.calls, plain.record.guidance) == (2, None)
    shared = SharedNoise(made, 10, guidance=2.0)
    assert torch.equal(shared.images((80.0, 1.0)), to_uint8(made.sample(10, sigmas=[80.0, 1.0], guidance=2.0)))
    assert shared.calls == 4
    with pytest.raises(InputError, match="was not trained with guidance"):
        search_times(model(LABELLED), DATA, n=60, grid=3, guidance=2.0)


def test_three_steps_are_found_in_descending_order() -> None:
    found = search_times(MODEL, DATA, 3, n=500, grid=30)
    assert found.found.sigmas[0] == FIRST > found.found.sigmas[1] > found.found.sigmas[2]
    two = search_times(MODEL, DATA, 2, n=500, grid=30)
    assert found.found.metric.value < two.found.metric.value  # every further step takes half of the error
    assert any(len(point.sigmas) == 2 for point in found.curve)  # the greedy part
    assert found.calls < 3 * len(found.curve)


# ---- the numbers are those of the model that uses the time points


@pytest.mark.parametrize("network", [NETWORK, LABELLED])
def test_shared_noise_gives_what_sampling_gives(network: UNetConfig) -> None:
    made = model(network)
    shared, apart = SharedNoise(made, 70, seed=9, batch=32), SharedNoise(made, 70, seed=9, batch=32, memory=0)
    calls = 0
    for sigmas, fresh in (((80.0, 2.0), 2), ((80.0, 1.0), 1), ((80.0, 1.0, 0.5), 2), ((80.0, 1.0, 0.3), 1), ((80.0,), 1)):
        wanted = to_uint8(made.sample(70, seed=9, sigmas=list(sigmas)))
        assert torch.equal(shared.images(sigmas), wanted)
        assert torch.equal(apart.images(sigmas), wanted)
        calls += fresh
        assert shared.calls == calls
    assert apart.calls == 11


def test_labels_are_kept_for_all_steps() -> None:
    made = model(LABELLED)
    labels = [0, 1, 2] * 10
    wanted = to_uint8(made.sample(30, seed=2, sigmas=[80.0, 1.0], labels=labels))
    assert torch.equal(SharedNoise(made, 30, seed=2, labels=labels).images((80.0, 1.0)), wanted)
    assert not torch.equal(SharedNoise(made, 30, seed=2, labels=1).images((80.0, 1.0)), wanted)


def test_the_value_is_that_of_evaluation() -> None:
    found = search_times(MODEL, DATA, n=400, grid=12, seed=3)
    record = evaluate(with_times(MODEL, found), DATA, steps=2, n=400, metrics=("frechet",), seed=3)
    ours, theirs = found.record.metrics["frechet"], record.metrics["frechet"]
    assert ours.value == pytest.approx(theirs.value, rel=1e-9)
    assert ours.interval == pytest.approx(theirs.interval, rel=1e-9)
    assert (found.record.extractor, found.record.reference) == (record.extractor, record.reference)


def test_kid_and_functions_of_images_can_be_searched_by() -> None:
    found = search_times(MODEL, DATA, n=200, grid=9, metric="kid")
    assert found.name == "kid"
    assert found.found.sigmas[1] == pytest.approx(BEST, rel=0.6)
    found = search_times(model(time_points={2: (FIRST, 20.0)}), DATA, n=200, grid=9, metric="kid")
    assert found.sure
    assert found.gain.value == pytest.approx(found.before.metric.value - found.found.metric.value, rel=0.2)

    def brightness(images: Tensor) -> float:
        assert images.dtype == torch.uint8
        return float(images.double().mean())

    found = search_times(MODEL, DATA, n=300, grid=15, metric=brightness)
    assert found.found.sigmas[1] == pytest.approx(BEST, rel=0.35)
    assert found.gain is None
    assert found.record.extractor.name.startswith("function ")


# ---- what is kept


def test_an_interrupted_search_goes_on_with_the_values_it_has(tmp_path: Path) -> None:
    whole = search_times(MODEL, DATA, n=200, grid=30)
    ledger, told = tmp_path / "search.json", []

    def stop(info: dict[str, Any]) -> None:
        told.append(info)
        if info["evaluation"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_times(MODEL, DATA, n=200, grid=30, ledger=ledger, callback=stop)
    assert len(json.loads(ledger.read_text())["evaluations"]) == 4
    again = search_times(MODEL, DATA, n=200, grid=30, ledger=ledger)
    assert again.measured == whole.measured - 4
    assert (again.found, again.before, again.curve) == (whole.found, whole.before, whole.curve)
    assert json.loads(ledger.read_text())["result"]["sigmas"] == list(whole.found.sigmas)
    assert [info["sigmas"] for info in told] == [point.sigmas for point in whole.curve[:4]]
    assert told[0]["expected"] == pytest.approx(len(whole.curve), abs=4)
    # Another method chooses from the same values.
    scanned = search_times(MODEL, DATA, n=200, grid=30, ledger=ledger, method="scan")
    assert scanned.measured == 30 - len(whole.curve)


def test_a_ledger_of_another_search_is_not_used_and_not_touched(tmp_path: Path) -> None:
    ledger = tmp_path / "search.json"
    search_times(MODEL, DATA, n=100, grid=3, ledger=ledger)
    before = ledger.read_bytes()
    with pytest.raises(DataError, match=r"search.json holds a search with another n, seed: choose another name"):
        search_times(MODEL, DATA, n=101, grid=3, seed=1, ledger=ledger)
    other = ConsistencyModel(MODEL.config, Wrong(0.1))
    with pytest.raises(DataError, match="another weights"):
        search_times(other, DATA, n=100, grid=3, ledger=ledger)
    assert ledger.read_bytes() == before
    for content in ("{}", "no JSON", '{"settings": {}, "evaluations": [{"sigmas": [1]}]}', "[]"):
        ledger.write_text(content)
        with pytest.raises(DataError, match="holds no search of time points"):
            search_times(MODEL, DATA, n=100, grid=3, ledger=ledger)
        assert ledger.read_text() == content


def real_model(seed: int = 0) -> ConsistencyModel:
    from atonce.networks.build import build

    network = build(NETWORK, seed)
    return ConsistencyModel(ModelConfig(NETWORK, EDM, time_points={3: (80.0, 2.0, 1.0)}), network)


def test_stored_time_points_are_used_by_sampling_from_then_on(tmp_path: Path) -> None:
    made = real_model()
    folder = tmp_path / "model"
    made.save_pretrained(folder)
    found = search_times(made, DATA, n=100, grid=8)
    before = json.loads((folder / "config.json").read_text())
    store_times(folder, found)
    opened = ConsistencyModel.from_pretrained(folder)
    assert opened.config.time_points == {2: found.found.sigmas, 3: (80.0, 2.0, 1.0)}
    assert torch.equal(opened.sample(4, steps=2), made.sample(4, sigmas=found.found.sigmas))
    assert torch.equal(with_times(made, found).sample(4, steps=2), opened.sample(4, steps=2))
    after = json.loads((folder / "config.json").read_text())
    assert {name for name in before if before[name] != after[name]} == {"time_points"}
    assert made.config.time_points == {3: (80.0, 2.0, 1.0)}
    # A search of another number of steps joins the first; one of the same replaces it.
    store_times(folder, search_times(opened, DATA, 3, n=100, grid=5))
    store_times(folder, search_times(opened, DATA, n=100, grid=[1.0, 2.0]))
    kept = json.loads((folder / FILE).read_text())["searches"]
    assert set(kept) == {"2", "3"}
    assert len(kept["2"]["curve"]) == 2
    assert kept["2"]["extractor"]["name"] == "pixels"
    assert kept["2"]["record"]["command"]


def test_time_points_are_stored_beside_their_weights_only(tmp_path: Path) -> None:
    found = search_times(real_model(), DATA, n=100, grid=[1.0, 2.0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for folder in (tmp_path / "mine", tmp_path / "nothing"):
        with pytest.raises(InputError, match="is not a model folder of atonce"):
            store_times(folder, found)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"
    real_model(1).save_pretrained(tmp_path / "other")
    before = (tmp_path / "other" / "config.json").read_bytes()
    with pytest.raises(InputError, match="holds other weights than those that were searched"):
        store_times(tmp_path / "other", found)
    assert (tmp_path / "other" / "config.json").read_bytes() == before
    assert not (tmp_path / "other" / FILE).exists()


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", '{"searches": {}}', '{"format": 1, "searches": 3}', '{"format": 2, "searches": {}}']
)
def test_searches_that_cannot_be_read_are_left_alone(tmp_path: Path, content: str) -> None:
    made = real_model()
    made.save_pretrained(tmp_path)
    found = search_times(made, DATA, n=100, grid=[1.0, 2.0])
    (tmp_path / FILE).write_text(content)
    before = (tmp_path / "config.json").read_bytes()
    for refused in (lambda: store_times(tmp_path, found), lambda: holds_model(tmp_path, found.weights)):
        with pytest.raises(DataError, match=r"time_search.json .*: move it away .* nothing was changed") as said:
            refused()
        assert "\n" not in str(said.value)
    assert (tmp_path / FILE).read_text() == content
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_a_folder_for_a_copy_holds(tmp_path: Path) -> None:
    made = real_model()
    weights = weights_digest(made)
    assert not holds_model(tmp_path / "nothing", weights)
    assert not holds_model(tmp_path, weights)  # empty
    made.save_pretrained(tmp_path / "same")
    assert holds_model(tmp_path / "same", weights)
    real_model(1).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="other holds another model, nothing was changed"):
        holds_model(tmp_path / "other", weights)
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    (tmp_path / "same" / "config.json").write_text(json.dumps({**config, "weights": {}}))
    with pytest.raises(InputError, match="holds another model"):  # of which nothing is known
        holds_model(tmp_path / "same", weights)


def test_the_digest_is_that_of_the_weights_in_a_folder(tmp_path: Path) -> None:
    made = real_model()
    made.save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())["weights"]["model.safetensors"]
    assert weights_digest(made) == written
    assert weights_digest(real_model(1)) != written


# ---- choices that are made for the user


def test_the_grid_spans_what_matters() -> None:
    levels = search_grid(MODEL, 40)
    assert (levels[0], levels[-1]) == (pytest.approx(0.2 * S), pytest.approx(40 * S))
    ratios = [b / a for a, b in zip(levels, levels[1:], strict=False)]
    assert max(ratios) == pytest.approx(min(ratios))
    published = search_grid(ConsistencyModel(ModelConfig(NETWORK, Preconditioning()), Wrong()), 18, "ternary")
    assert len(published) == 16
    assert published[16 - 11] == pytest.approx(0.585348, abs=1e-6)  # index 11 of 0 to 17 from the top


def test_auto_takes_the_classifier_of_labelled_data_but_pixels_for_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(searching, "open_extractor", lambda name, shape, data: asked.append(name) or pixels(shape))
    labelled = ImageData(DATA.images[:10], torch.arange(10) % 2, name="others")
    digits = ImageData(DATA.images[:10], torch.arange(10) % 2, name="digits")
    large = ImageData(torch.zeros(2, 1, 99, 99, dtype=torch.uint8), torch.arange(2), name="others")
    for data in (labelled, digits, large, DATA):
        search_extractor("auto", data)
    search_extractor("pixels", labelled)
    assert asked == ["classifier", "auto", "auto", "auto", "pixels"]


# ---- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 1}, "steps is 1: a search needs at least 2"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": "2"}, "steps is '2'"),
        ({"method": "guess"}, "search method 'guess' is not known; known: golden, ternary"),
        ({"metric": "beauty"}, "metric 'beauty' cannot be searched by; possible: frechet, kid"),
        ({"n": 49}, "n is 49: metric frechet needs at least 50 samples"),
        ({"n": 3, "metric": "kid"}, "needs at least 4"),
        ({"n": 1.5}, "n is 1.5"),
        ({"batch": 0}, "batch is 0"),
        ({"grid": 2}, "grid is 2, a search needs at least 3"),
        ({"grid": [0.001, 1.0]}, r"must hold noise levels between 0.002 and 80"),
        ({"grid": [1.0, 90.0]}, r"must hold noise levels between 0.002 and 80"),
        ({"grid": []}, "must hold noise levels"),
        ({"grid": [1.0], "steps": 3}, "the grid has 1 noise levels"),
        ({"method": "scan", "steps": 4, "grid": 60}, "34,220 choices, at most 10,000 do"),
        ({"labels": 1}, "this model is unconditional"),
        ({"extractor": "taste"}, "extractor 'taste' is unknown"),
        ({"data": "no-such-data"}, "no-such-data"),
    ],
)
def test_bad_input_is_refused_before_any_sample_is_made(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedNoise, "images", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(InputError, match=said):
        search_times(MODEL, **{"data": DATA, **options})


@pytest.mark.parametrize(("n", "metric"), [(10**11, "frechet"), (10**30, "frechet"), (10**11, "kid")])
def test_more_samples_than_the_memory_holds_are_refused(n: int, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedNoise, "images", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(DataError, match=r"samples of shape \[1, 8, 8\] would need .* GiB of memory: give a smaller n"):
        search_times(MODEL, DATA, n=n, metric=metric)
    with pytest.raises(DataError, match="give a smaller n"):
        SharedNoise(MODEL, n)


def test_features_of_more_samples_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 400_000)  # of 1000 samples: 144 kB of images, 1 MB of features
    monkeypatch.setattr(SharedNoise, "images", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(DataError, match="64 features of 1,000 samples, twice would need"):
        search_times(MODEL, DATA, n=1000, metric="kid", extractor="pixels")


def test_models_and_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="this is a denoiser"):
        search_times(model(kind="denoiser"), DATA)
    with pytest.raises(InputError, match=r"the model makes images \[1, 8, 8\], the data are \[1, 4, 4\]"):
        search_times(MODEL, ImageData(DATA.images[:, :, :4, :4]))
    seen = model()
    seen.card["extractors_seen"] = [pixels((1, 8, 8)).digest]
    with pytest.raises(InputError, match="training has seen the extractor pixels"):
        search_times(seen, DATA)


def test_a_broken_model_is_named() -> None:
    broken = ConsistencyModel(MODEL.config, Wrong(math.nan))
    with pytest.raises(InputError, match="values that are not finite"):
        search_times(broken, DATA, n=50)
