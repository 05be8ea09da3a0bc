"""Quality against calls and seconds, on a denoiser and a consistency function for which everything is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from atonce.core.errors import DataError, InputError
from atonce.core.images import to_uint8
from atonce.core.records import UNIFORM
from atonce.data.dataset import ImageData
from atonce.evaluation.evaluate import evaluate
from atonce.evaluation.extractors import pixels
from atonce.model import ConsistencyModel, ModelConfig
from atonce.model_files import model_identity
from atonce.networks.unet import UNetConfig
from atonce.noise.worlds import Gaussian
from atonce.planning.machine import machine
from atonce.preconditioning import Preconditioning
from atonce.reports import quality
from atonce.reports.plots import png
from atonce.reports.quality import Way, compare_quality, sampling_seconds, table, ways
from atonce.reports.quality_plot import quality_figure
from atonce.sampling.times import denoiser_times

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
S, D, N = 0.3, 64, 1500
DATA = ImageData(to_uint8(Gaussian(0.0, S).sample(6000, 1, shape=(1, 8, 8))), name="gaussian")


class Zero(nn.Module):
    """F = 0: under EDM's preconditioning the exact denoiser of N(0, sigma_data^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.a.to(x.dtype) * x


class Exact(Zero):
    """F such that f(x, sigma) = S / sqrt(S^2 + sigma^2) x, the exact consistency function of N(0, S^2)."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        sigma = (4 * c_noise.double()).exp()
        c_skip, c_out, c_in, _ = (c.reshape(-1, 1, 1, 1) for c in EDM.coefficients(sigma))
        y, s = x.double() / c_in, sigma.reshape(-1, 1, 1, 1)
        return ((S / (S**2 + s**2).sqrt() * y - c_skip * y) / c_out + self.a.double()).to(x.dtype)


EDM = Preconditioning("edm", S, 0.0)
TEACHER = ConsistencyModel(ModelConfig(NETWORK, EDM, kind="denoiser"), Zero())
STUDENT = ConsistencyModel(ModelConfig(NETWORK, EDM), Exact())


def solved_std(steps: int, heun: bool) -> float:
    """Standard deviation that a solver leaves, a product over its intervals: the denoiser of N(0, S^2) is linear."""
    times, gain = denoiser_times(steps, 0.002, 80.0), 80.0
    for t, to in zip(times, times[1:], strict=False):
        slope = lambda s: s / (S**2 + s**2)
        step = 1 + (to - t) * slope(t)
        if heun and to > 0:
            step = 1 + (to - t) / 2 * (slope(t) + slope(to) * step)
        gain *= step
    return gain


def test_calls_and_quality_are_those_of_the_solvers() -> None:
    points = compare_quality(
        [("student", STUDENT), ("teacher", TEACHER)], DATA, steps=(1, 2), solver_steps=(12, 18), n=N, extractor="pixels"
    )
    shown = [(p.model, p.way.sampler, p.way.steps, p.calls) for p in points]
    assert shown == [
        ("student", "restart", 1, 1),
        ("student", "restart", 2, 2),
        ("teacher", "heun", 12, 23),
        ("teacher", "heun", 18, 35),
        ("teacher", "euler", 12, 12),
        ("teacher", "euler", 18, 18),
    ]
    bias = (D + D**2 / 4) * S**2 * (1 / N + 1 / 6000)  # of finite samples: of the means and of the covariances
    for point in points:
        std = S if point.model == "student" else solved_std(point.way.steps, point.way.sampler == "heun")
        metric, exact = point.record.metrics["frechet"], D * (std - S) ** 2
        assert metric.value == pytest.approx(exact + bias, abs=0.2 * bias + 0.03 * exact)
        assert metric.interval is not None
        assert point.seconds > 0
        assert point.record.samples == N
        assert machine(torch.device("cpu")) in point.record.notes[-1]
    by = {(p.way.sampler, p.way.steps): p.record.metrics["frechet"].value for p in points}
    assert by["heun", 18] < by["heun", 12]
    assert by["heun", 18] < by["euler", 18] < by["euler", 12]


def test_the_records_say_which_model_it_was_and_how_it_was_asked() -> None:
    network = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=2)
    config = ModelConfig(network, EDM, labels=("a", "b"), time_points={2: (80.0, 3.0)})
    labelled = ConsistencyModel(config, Exact(), card={"name": "labelled"})
    points = compare_quality(
        [("student", labelled), ("teacher", TEACHER)], DATA, steps=(1, 2), solver_steps=(2,), n=60, extractor="pixels"
    )
    one, two, heun, euler = (point.record for point in points)
    for record in (one, two):
        assert (record.model, record.labels, record.sampler) == (model_identity(labelled), UNIFORM, "restart")
        assert record.model.startswith("labelled, sha256 ")
    assert (one.steps, one.sigmas, two.steps, two.sigmas) == (1, None, 2, (80.0, 3.0))
    for record, sampler, calls in ((heun, "heun", 3), (euler, "euler", 2)):
        assert (record.model, record.labels, record.sampler) == (model_identity(TEACHER), None, sampler)
        assert (record.steps, record.calls, record.sigmas) == (2, calls, None)
    direct = evaluate(labelled, DATA, n=60, metrics=("frechet",), extractor="pixels", steps=2)
    assert direct.metrics["frechet"] == two.metrics["frechet"]


def test_seconds_are_the_least_of_batches_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0.0], []

    class Slow:
        """The first batch, which warms up, takes 1 second here, one of the others 6, the rest 50."""

        device = torch.device("cpu")

        def sample(self, n: int, **options: object) -> None:
            made.append((n, options["first"], options["batch"], options["steps"]))
            now[0] += {1: 1.0, 4: 6.0}.get(len(made), 50.0)

    monkeypatch.setattr(quality.time, "perf_counter", lambda: now[0])
    assert sampling_seconds(Slow(), 3, steps=2) == 2.0
    assert made == [(3, 3 * k, 3, 2) for k in range(6)]


def test_points_without_conditions_are_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    options = {"n": 60, "extractor": "pixels", "out": out, "steps": (1, 2)}
    compare_quality([("a", STUDENT)], DATA, **options)
    file = json.loads(out.read_text())
    file["points"][1]["record"]["model"] = None
    out.write_text(json.dumps(file))
    told = []
    compare_quality([("a", STUDENT)], DATA, callback=lambda point, done, total, new: told.append(new), **options)
    assert told == [False, True]
    again = json.loads(out.read_text())["points"]
    assert again[0] == file["points"][0]
    assert [point["steps"] for point in again] == [1, 2]
    assert again[1]["record"]["model"]


def test_points_that_are_there_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, told = tmp_path / "quality.json", []
    options = {"n": 60, "extractor": "pixels", "out": out, "steps": (1, 2), "solver_steps": (2,)}

    def stop(point, done, total, new) -> None:
        told.append((done, total, new))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_quality([("a", STUDENT)], DATA, callback=stop, **{**options, "steps": (1, 2, 4)})
    assert told == [(1, 3, True), (2, 3, True)]
    first = json.loads(out.read_text())["points"]
    assert len(first) == 2
    monkeypatch.setattr(quality, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    again = compare_quality([("a", STUDENT)], DATA, **options)
    assert [p.as_dict() for p in again] == first
    monkeypatch.undo()
    # Another seed, another model and other time points are measured beside what is there.
    compare_quality([("a", STUDENT)], DATA, **{**options, "seed": 1})
    compare_quality([("a", STUDENT), ("b", TEACHER)], DATA, **options)
    searched = ConsistencyModel(ModelConfig(NETWORK, EDM, time_points={2: (80.0, 3.0)}), STUDENT.network)
    compare_quality([("a", searched)], DATA, **options)
    points = json.loads(out.read_text())["points"]
    assert points[:2] == first
    assert [(p["settings"]["seed"], p["sampler"], p["steps"], p["settings"]["time points"]) for p in points[2:]] == [
        (1, "restart", 1, []),
        (1, "restart", 2, []),
        (0, "heun", 2, []),
        (0, "euler", 2, []),
        (0, "restart", 2, [80.0, 3.0]),
    ]


def test_the_table_and_the_plot_show_every_point() -> None:
    points = compare_quality(
        [("student", STUDENT), ("teacher", TEACHER)], DATA, steps=(1,), solver_steps=(2, 3), n=60, extractor=pixels((1, 8, 8))
    )
    head, rows = table(points)
    assert head[:4] == ["model", "sampler", "steps", "calls"]
    assert [row[:4] for row in rows][1] == ["teacher", "heun", "2", "3"]
    assert all(len(row) == len(head) and " to " in row[5] for row in rows)
    figure = quality_figure(points)
    panels = figure.axes
    assert [axes.get_xscale() for axes in panels] == [axes.get_yscale() for axes in panels] == ["log", "log"]
    lines = [line for line in panels[0].lines if not str(line.get_label()).startswith("_")]
    assert [list(line.get_xdata()) for line in lines] == [[1], [3, 5], [2, 3]]
    assert list(panels[1].lines[0].get_xdata()) == pytest.approx([1000 * points[0].seconds])
    assert png(figure).startswith(b"\x89PNG")


def test_ways_of_a_model() -> None:
    assert ways(STUDENT, (1, 2, 1), (5,)) == [Way("restart", 1), Way("restart", 2)]
    assert ways(TEACHER, (1,), (5,)) == [Way("heun", 5), Way("euler", 5)]


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        ([("a", STUDENT)], {"n": 49}, "n is 49"),
        ([("a", STUDENT)], {"batch": 0}, "batch is 0"),
        ([("a", STUDENT)], {"steps": (0,)}, r"steps is \[0\]"),
        ([("a", STUDENT)], {"steps": ()}, r"steps is \[\]"),
        ([("a", TEACHER)], {"solver_steps": (2.5,)}, r"solver_steps is \[2.5\]"),
        ([], {}, "there is no model to measure"),
        ([("a", STUDENT), ("a", TEACHER)], {}, "each can be named once"),
        ([("a", STUDENT)], {"data": ImageData(DATA.images[:, :, :4, :4])}, "they must agree"),
        ([("a", STUDENT)], {"extractor": "taste"}, "extractor 'taste' is unknown"),
    ],
)
def test_bad_input_is_refused_before_any_work(models, options, said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "evaluate", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(InputError, match=said):
        compare_quality(models, **{"data": DATA, **options})


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    for content in ("mine", "{}", '{"points": [{"model": 1}]}', "[1]"):
        out.write_text(content)
        with pytest.raises(DataError, match="holds no points of a comparison"):
            compare_quality([("a", STUDENT)], DATA, n=60, out=out)
        assert out.read_text() == content


def test_the_oracle_itself_converges() -> None:
    assert solved_std(400, True) == pytest.approx(S * 80 / math.hypot(80, S), rel=1e-3)
