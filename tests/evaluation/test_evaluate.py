from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor

import atonce
from atonce.core.errors import InputError
from atonce.core.images import from_uint8, to_uint8
from atonce.core.records import Record, Source, comparable
from atonce.core.streams import Stream, normal, uniform
from atonce.data import limits
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation.evaluate import METRICS as NAMES
from atonce.evaluation.evaluate import evaluate
from atonce.evaluation.extractors import INCEPTION, Extractor, pixels
from atonce.evaluation.frechet import FeatureStatistics, frechet_distance
from atonce.evaluation.score import score_metric

METRICS = ("frechet", "kid", "precision_recall", "density_coverage", "neighbours", "digits")


class Sampler:
    """Stands for a model: digits with noise that falls with the number of steps; sample i depends on (seed, i) alone."""

    device = torch.device("cpu")
    card: dict[str, Any] = {"recipe_hash": "abc"}

    def __init__(self) -> None:
        self.digits = from_uint8(open_data("digits", split="all").images)
        self.asked: list[tuple[int, int]] = []
        self.labels: list[Tensor] = []

    def sample(
        self,
        n: int,
        steps: int = 1,
        seed: int = 0,
        *,
        first: int = 0,
        labels: Any = None,
        batch: Any = None,
        callback: Any = None,
    ) -> Tensor:
        self.asked.append((first, n))
        if labels is not None:
            self.labels.append(labels)
        index = torch.arange(first, first + n)
        rows = (uniform(seed, index, 1, Stream.SAMPLE)[:, 0] * len(self.digits)).long()
        for step in range(steps):
            if callback is not None:
                callback({"step": step, "calls": step + 1})
        return (self.digits[rows] + 0.2 / steps * normal(seed, index, (1, 8, 8), Stream.SAMPLE, 1)).clamp(-1, 1)


def values(record: Record) -> dict[str, float]:
    return {name: metric.value for name, metric in record.metrics.items()}


def test_a_model_gives_a_whole_record() -> None:
    record = evaluate(Sampler(), "digits", n=300, steps=2, seed=4, metrics=METRICS)
    assert set(METRICS) < set(NAMES)
    assert {
        "frechet", "kid", "precision", "recall", "density", "coverage", "neighbour_ratio", "digits_ratio", "digits_confidence",
        "digits_confidence_strict",
    } <= set(record.metrics)  # fmt: skip
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage", "neighbour_ratio"):
        interval = record.metrics[name].interval
        assert interval is not None
        assert interval[0] <= record.metrics[name].value <= interval[1]
    assert (record.samples, record.steps, record.calls, record.seed, record.recipe) == (300, 2, 2, 4, "abc")
    assert record.device.startswith("cpu")
    assert record.extractor.name == "pixels"
    assert record.reference.count == record.data.count == 1797
    assert record.reference.digest == open_data("digits", split="all").digest()
    assert not record.notes
    assert Record.from_dict(record.as_dict()) == record


def test_frechet_is_the_distance_of_the_quantised_samples() -> None:
    model = Sampler()
    made = to_uint8(model.sample(200, seed=1))
    sides = []
    for images in (made, open_data("digits", split="all").images):
        side = FeatureStatistics(64)
        side.update(images.double().flatten(1) / 127.5 - 1)
        sides.append(side)
    got = evaluate(model, n=200, seed=1, metrics="frechet").metrics["frechet"].value
    assert got == pytest.approx(frechet_distance(*sides), rel=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 128])
def test_batches_change_nothing(batch: int) -> None:
    metrics = ("frechet", "kid", "precision_recall", "density_coverage")
    whole = evaluate(Sampler(), n=150, metrics=metrics)
    model = Sampler()
    parts = evaluate(model, n=150, metrics=metrics, batch=batch)
    assert values(parts) == pytest.approx(values(whole), rel=1e-9)
    assert parts.metrics["frechet"].interval == pytest.approx(whole.metrics["frechet"].interval, rel=1e-6)
    assert model.asked == [(0, 64), (64, 64), (128, 64)]  # the same images together, each once


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_change_nothing_for_a_network_in_float32(batch: int) -> None:
    """Its last bits depend on the size of its batch, and some fall across the border of two of the 256 levels."""
    model = atonce.load("digits")
    told: dict[str, Any] = {"n": 200, "metrics": ("frechet", "consistency_gap", "step_gain"), "steps": 2, "probes": 40}
    whole, parts = (values(evaluate(model, batch=size, **told)) for size in (None, batch))
    assert parts == pytest.approx(whole, rel=1e-9)


def _process(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        model = Sampler()
        record = evaluate(model, n=151, metrics=("frechet", "kid", "precision_recall"), sharded=True)
        assert 0 < sum(count for _, count in model.asked) < 151  # a part of the work
        record.save(Path(folder) / f"{rank}.json")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_the_record_of_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    processes = [context.Process(target=_process, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one = evaluate(Sampler(), n=151, metrics=("frechet", "kid", "precision_recall"))
    for rank in range(2):
        both = Record.load(tmp_path / f"{rank}.json")
        assert values(both) == pytest.approx(values(one), rel=1e-9)
        assert both.metrics["frechet"].interval == pytest.approx(one.metrics["frechet"].interval, rel=1e-6)


def test_images_tensor_and_folder_agree(tmp_path: Path) -> None:
    images = open_data("digits", split="test").images[:60]
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:03d}.png")
    as_bytes = evaluate(images, metrics="frechet")
    as_floats = evaluate(from_uint8(images), metrics="frechet")
    as_files = evaluate(tmp_path, metrics="frechet")
    assert values(as_bytes) == values(as_floats)
    assert values(as_files) == pytest.approx(values(as_bytes), rel=1e-9)
    assert as_bytes.samples == 60
    assert as_bytes.steps is as_bytes.calls is as_bytes.seed is None
    assert "singular" in " ".join(as_bytes.notes)
    assert evaluate(images, n=20, metrics="frechet").samples == 20


def test_more_steps_are_better_and_comparable() -> None:
    one, four = (evaluate(Sampler(), n=400, steps=steps, metrics="frechet") for steps in (1, 4))
    assert comparable(one, four) is None
    assert four.metrics["frechet"].value < one.metrics["frechet"].value
    assert comparable(one, evaluate(Sampler(), n=300, metrics="frechet")) is not None


def test_given_statistics_as_reference(tmp_path: Path) -> None:
    digits = open_data("digits", split="all").images.double().flatten(1) / 127.5 - 1
    np.savez(tmp_path / "digits.npz", mu=digits.mean(0).numpy(), sigma=torch.cov(digits.T).numpy())
    given = evaluate(Sampler(), n=100, metrics="frechet", reference=tmp_path / "digits.npz")
    own = evaluate(Sampler(), n=100, metrics="frechet")
    assert given.metrics["frechet"].value == pytest.approx(own.metrics["frechet"].value, rel=1e-9)
    assert given.reference.name == "digits.npz"
    assert given.reference.count is None
    assert comparable(given, own) is not None
    with pytest.raises(InputError, match="frechet only: leave out kid"):
        evaluate(Sampler(), n=100, metrics=("frechet", "kid"), reference=tmp_path / "digits.npz")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(InputError, match="has 3 features, extractor pixels gives 64"):
        evaluate(Sampler(), n=100, metrics="frechet", reference=tmp_path / "other.npz")
    np.savez(tmp_path / "bent.npz", mu=np.zeros(3), sigma=np.zeros((3, 2)))
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    for name in ("bent.npz", "broken.npz"):
        with pytest.raises(InputError, match=name):
            evaluate(Sampler(), n=100, metrics="frechet", reference=tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        evaluate(Sampler(), n=100, metrics="frechet", reference=tmp_path / "none.npz")


def test_a_batch_of_images_as_reference(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", arr_0=open_data("digits", split="all").images.permute(0, 2, 3, 1).numpy())
    given = evaluate(Sampler(), n=100, metrics="kid", reference=tmp_path / "batch.npz")
    assert values(given) == values(evaluate(Sampler(), n=100, metrics="kid"))


def test_labels_are_cut_to_the_batches() -> None:
    model = Sampler()
    evaluate(model, n=10, metrics="frechet", batch=4, labels=torch.arange(10))
    assert torch.equal(torch.cat(model.labels), torch.arange(10))
    model = Sampler()
    evaluate(model, n=10, metrics="frechet", batch=4, labels=3)
    assert torch.cat(model.labels).tolist() == [3] * 10
    with pytest.raises(InputError, match="one for each of 10 samples"):
        evaluate(model, n=10, metrics="frechet", labels=[1, 2])


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    evaluate(Sampler(), n=10, metrics="frechet", batch=4, callback=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_own_extractor_and_what_was_seen_in_training() -> None:
    base = pixels((1, 8, 8))
    half = Extractor("half", "d1g3st", 32, lambda x: base(x)[:, :32], seen_in_training=True)
    record = evaluate(Sampler(), n=100, metrics="frechet", extractor=half)
    assert record.extractor.digest == "d1g3st"
    assert "seen in training" in (comparable(record, record) or "")


def unused() -> Any:
    class Refuses:
        def sample(self, n: int, **options: Any) -> Tensor:
            raise AssertionError("samples were made before the input was checked")

    return Refuses()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fid",)}, "fid means the Inception weights.*extra.*ask for frechet"),
        ({"metrics": ("frechet", "nice")}, "unknown metric nice: choose from frechet, fid, kid, is, "),
        ({"metrics": ()}, "none given"),
        ({"n": 1}, "at least 2 samples, got 1"),
        ({"n": 3}, "kid needs at least 4 samples"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"metrics": ("is",)}, "is means the Inception weights, the extractor is auto.*or ask for classifier_score"),
        ({"metrics": ("fid",), "extractor": "effnet-lite0"}, "the extractor is effnet-lite0: give extractor='inception'"),
        ({"metrics": ("is",), "extractor": "classifier"}, "the extractor is classifier"),
        ({"metrics": ("classifier_score",), "n": 19}, "at least 20 samples, got 19"),
        ({"metrics": ("class_accuracy",)}, "needs samples of known classes of digits"),
        ({"metrics": ("consistency_gap",)}, "calls model\\(x, sigma\\) up to model.sigma_max: Refuses cannot"),
        ({"metrics": ("teacher_distance",)}, "calls model\\(x, sigma\\) up to model.sigma_max: Refuses cannot"),
        ({"metrics": ("step_gain",), "probes": 1}, "probes must be at least 2 images, got 1"),
        ({"metrics": ("step_gain",), "sigmas": (80.0,)}, "step_gain needs at least 2 steps"),
        ({"metrics": ("frechet_per_class",), "reference": "digits"}, "compares with the classes of the data: leave out"),
        ({"metrics": ("neighbours",), "held_out": "no such data"}, "no such data"),
        ({"labels": "balanced"}, "names no classes"),
        ({"n": 50.0}, "n is 50.0, must be a whole number"),
        ({"n": "50"}, "n is '50', must be a whole number"),
        ({"n": True}, "n is True, must be a whole number"),
        ({"n": 10**30}, "n must be at most 2"),
        ({"batch": 2.5}, "batch is 2.5, must be a whole number"),
        ({"steps": "2"}, "steps is '2', must be a whole number"),
        ({"seed": None}, "seed is None, must be a whole number"),
        ({"metrics": ("step_gain",), "probes": "9"}, "probes is '9', must be a whole number"),
        ({"metrics": 3}, "metrics must be names, got 3: choose from frechet"),
        ({"metrics": None}, "metrics must be names, got None"),
        ({"metrics": ["frechet", 3]}, "metrics must be names, got 3"),
        ({"extractor": None}, "extractor must be a name or an Extractor, got NoneType"),
        ({"data": None}, "data must be a name, a path or an ImageData, got NoneType"),
        ({"reference": 3}, "reference must be a name, a path or an ImageData, got int"),
        ({"held_out": 3, "metrics": "neighbours"}, "held_out must be a name, a path or an ImageData, got int"),
        ({"split": 3}, "split must be train, test or all, got 3"),
        ({"sigmas": "80"}, "sigmas is '80', must be a list of numbers"),
        ({"labels": ["a", "b"]}, "labels must be whole numbers, one or one for each sample"),
        ({"labels": [0.5, 1.0]}, "labels must be whole numbers, got torch.float32"),
        ({"data": "no such data"}, "no such data"),
    ],
)
def test_bad_input_is_named_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(unused(), **options)


@pytest.mark.parametrize("metrics", ["kid", "precision_recall", "density_coverage"])
def test_more_samples_than_the_memory_holds(metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 16 << 30)
    with pytest.raises(
        InputError, match=r"64 features \(pixels\) of 100,000,000 images would need 47.7 GiB, .*make fewer"
    ) as told:
        evaluate(unused(), n=100_000_000, metrics=metrics)
    assert "\n" not in str(told.value)


def test_more_images_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 4 << 30)
    with pytest.raises(InputError, match=r"100,000,000 images \[1, 8, 8\] would need 6.0 GiB.*make fewer images"):
        evaluate(Sampler(), n=100_000_000, metrics="digits", batch=10)


def test_a_covariance_that_is_none_is_no_perfect_score(tmp_path: Path) -> None:
    np.savez(tmp_path / "negative.npz", mu=np.zeros(64), sigma=-np.eye(64))
    with pytest.raises(InputError, match=r"negative.npz cannot be used: sigma has the eigenvalue -1"):
        evaluate(unused(), metrics="frechet", reference=tmp_path / "negative.npz")


def test_six_images_are_not_certain() -> None:
    images = open_data("digits", split="all").images[:6]
    found = evaluate(images, metrics="precision_recall").metrics
    assert found["precision"].value == 1.0
    assert found["precision"].interval == pytest.approx((0.60967, 1.0), abs=1e-5)


def test_metrics_that_do_not_fit_the_data() -> None:
    data = ImageData(torch.zeros(10, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="digits judges the 8x8 digits"):
        evaluate(unused(), data, metrics="digits")
    with pytest.raises(InputError, match="training and a test split"):
        evaluate(unused(), data, metrics="neighbours")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(5, 3, 8, 8, dtype=torch.uint8), r"\[3, 8, 8\], the data \[1, 8, 8\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "at least 2 images"),
        (torch.full((5, 1, 8, 8), 200.0), r"in \[-1, 1\], got 200"),
        (torch.full((5, 1, 8, 8), torch.nan), r"in \[-1, 1\], got nan"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.int64), "uint8 or float"),
        (torch.zeros(5, 8, 8), r"the images are"),
        (17, "got int"),
    ],
)
def test_bad_images_are_named(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(images, metrics="frechet")


def test_a_broken_model_is_named() -> None:
    class Broken:
        def sample(self, n: int, **options: Any) -> Tensor:
            return torch.full((n, 1, 8, 8), torch.nan)

    with pytest.raises(InputError, match="not finite among the samples 0 to 9"):
        evaluate(Broken(), n=10, metrics="frechet")


def test_metrics_of_a_model_for_given_images() -> None:
    images = open_data("digits", split="test").images[:60]
    for name in ("consistency_gap", "teacher_distance", "step_gain"):
        with pytest.raises(InputError, match=f"metric {name} looks at a model, images were given: leave it out"):
            evaluate(images, metrics=name)


def test_memorisation_with_held_out_images_in_memory() -> None:
    digits = open_data("digits", split="all")
    training, held_out = digits.subset(range(1000)), digits.subset(range(1000, 1797))
    record = evaluate(training.images[:200], training, metrics="neighbours", held_out=held_out)
    assert record.held_out == Source(held_out.name, held_out.digest(), 797)
    copies = record.metrics["neighbour_ratio"]
    assert copies.value == 0.0
    assert copies.interval == (0.0, 0.0)
    fresh = evaluate(held_out.images[:300], training, metrics="neighbours", held_out=held_out).metrics["neighbour_ratio"]
    assert fresh.interval is not None
    assert fresh.interval[0] < 1 < fresh.interval[1] * 1.05
    with pytest.raises(InputError, match=r"held-out images are \[3, 4, 4\], the data \[1, 8, 8\]"):
        evaluate(unused(), training, metrics="neighbours", held_out=ImageData(torch.zeros(9, 3, 4, 4, dtype=torch.uint8)))


def test_inceptions_metrics_have_their_own_names() -> None:
    """An extractor that says it is FID's, with a head: fid is its Fréchet distance, and the score that of its head."""
    base = pixels((1, 8, 8))
    calls: list[int] = []

    def function(images: Tensor) -> Tensor:
        calls.append(len(images))
        return base(images)

    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fake = Extractor(INCEPTION, "d", 64, function, batch=100, head=lambda features: features @ weight.T)
    record = evaluate(Sampler(), n=250, metrics=("fid", "is"), extractor=fake)
    plain = evaluate(Sampler(), n=250, metrics="frechet")
    assert record.metrics["fid"].value == pytest.approx(plain.metrics["frechet"].value, rel=1e-9)
    images = to_uint8(Sampler().sample(250))
    expected = score_metric((base(images) @ weight.T).softmax(1))
    assert record.metrics["is"].value == pytest.approx(expected.value, rel=1e-9)
    assert calls[:3] == [100, 100, 50]  # the samples went through the network once
    alone = evaluate(Sampler(), n=250, metrics="is", extractor=fake)
    assert alone.metrics["is"].value == record.metrics["is"].value
    with pytest.raises(InputError, match="offers none"):
        evaluate(unused(), n=250, metrics="is", extractor=Extractor(INCEPTION, "d", 64, base.function))


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(Sampler(), n=20, metrics="frechet")
    assert capsys.readouterr().err == ""
    evaluate(Sampler(), n=20, metrics="frechet", quiet=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert "sampling  20/20 img" in said.err
