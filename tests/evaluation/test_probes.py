"""Metrics that look at the model itself, in an evaluation: on Gaussian data, where the model and its teacher are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.core.records import Record
from atonce.core.streams import Stream, normal
from atonce.data.dataset import ImageData
from atonce.evaluation.evaluate import evaluate
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.networks.unet import UNet, UNetConfig
from atonce.noise.worlds import Gaussian
from atonce.preconditioning import Preconditioning

SHAPE = (1, 4, 4)
BOTH = ("teacher_distance", "consistency_gap")
WORLD = Gaussian(0.0, 0.3)
DATA = ImageData(to_uint8(WORLD.sample(500, 0, shape=SHAPE).float()), name="gaussian")


class Exact:
    """The exact consistency function of the world, off by a constant; samples by one call, then restarts."""

    device = torch.device("cpu")
    sigma_min, sigma_max, sigma_end = 0.002, 80.0, 0.002
    labels = None

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return (WORLD.consistency(x, sigma) + self.off).to(x.dtype)

    def sample(self, n: int, *, steps: int = 1, seed: int = 0, first: int = 0, sigmas: Any = None, **options: Any) -> Tensor:
        index = torch.arange(first, first + n)
        levels = list(sigmas) if sigmas is not None else [80.0, 0.5, 0.2][:steps]
        x0 = torch.zeros(n, *SHAPE)
        for step, sigma in enumerate(levels):
            x0 = self(x0 + sigma * normal(seed, index, SHAPE, Stream.SAMPLE, step), sigma)
        return x0.clamp(-1, 1)


def measured(record: Record, name: str) -> float:
    metric = record.metrics[name]
    assert metric.interval is not None
    assert metric.interval[0] <= metric.value <= metric.interval[1]
    return metric.value


def test_the_distance_to_the_teacher() -> None:
    exact = evaluate(Exact(), DATA, metrics="teacher_distance", teacher=WORLD.denoiser, probes=40, n=100)
    assert measured(exact, "teacher_distance") < 3e-3
    assert measured(exact, "teacher_correlation") > 0.999
    assert exact.samples == 40  # nothing else was made
    assert exact.teacher is not None
    assert exact.teacher.name == "denoiser"
    assert "64 Heun steps" in exact.notes[0]
    off = evaluate(Exact(0.1), DATA, metrics="teacher_distance", teacher=WORLD.denoiser, probes=40, n=100)
    assert measured(off, "teacher_distance") == pytest.approx(0.1, rel=0.05)


def test_batches_do_not_matter_and_few_samples_are_enough() -> None:
    one, other = (
        evaluate(Exact(0.1), DATA, metrics=BOTH, teacher=WORLD.denoiser, n=9, batch=b, teacher_steps=8) for b in (2, 9)
    )
    values = [{name: metric.value for name, metric in record.metrics.items()} for record in (one, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert one.metrics["consistency_gap"].count == 9
    assert one.metrics["teacher_distance"].settings == "Heun, 8 steps"


def test_the_consistency_gap_of_an_exact_model_and_of_none() -> None:
    class Identity(Exact):
        def __call__(self, x: Tensor, sigma: float) -> Tensor:
            return x

    exact, none = (evaluate(model, DATA, metrics="consistency_gap", probes=60) for model in (Exact(), Identity()))
    assert measured(exact, "consistency_gap") < 0.1
    # The identity moves by the noise: (80 - 0.002) / 17 on average over the intervals.
    assert measured(none, "consistency_gap") == pytest.approx(80 / 17, rel=0.05)
    assert exact.metrics["consistency_gap_largest"].value > exact.metrics["consistency_gap"].value
    assert "largest between sigma" in exact.notes[0]


def test_the_gain_from_step_to_step() -> None:
    record = evaluate(Exact(), DATA, n=200, steps=3, metrics=("frechet", "step_gain"), probes=50)
    assert {f"step_frechet:{k}" for k in (1, 2, 3)} < set(record.metrics)
    assert record.metrics["step_frechet:3"].value == pytest.approx(record.metrics["frechet"].value, rel=1e-9)
    gain = record.metrics["step_gain:2"].interval
    assert gain is not None
    assert gain[0] < 0 < gain[1]  # an exact model gains nothing by a further step
    assert measured(record, "step_change:2") > 0.05
    given = evaluate(Exact(), DATA, n=100, sigmas=(80.0, 0.5), metrics="step_gain", probes=10)
    assert given.samples == 100
    assert set(given.metrics) == {"step_frechet:1", "step_frechet:2", "step_gain:2", "step_change:2"}


NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=3)


def model(kind: str = "consistency", **changes: Any) -> ConsistencyModel:
    form = Preconditioning("edm", 0.5, 0.0) if kind == "denoiser" else Preconditioning("boundary", 0.5, 0.002)
    config = ModelConfig(NETWORK, form, kind=kind, **changes)  # type: ignore[arg-type]
    network = UNet(NETWORK, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return ConsistencyModel(config, network)


LABELLED = ImageData(DATA.images, torch.arange(500) % 3, name="gaussian")


def test_a_distilled_model_is_held_against_its_guided_teacher() -> None:
    """The teacher is guided by the scale that was distilled, and told the classes of the samples."""
    student, teacher = model(guidance=Guidance("fixed", (2.0,))), model("denoiser", guidance=Guidance("free"))
    record = evaluate(student, LABELLED, metrics=BOTH, n=6, teacher=teacher, teacher_steps=4, labels="balanced")
    assert record.teacher is not None
    assert record.teacher.name.startswith("model, sha256 ")
    assert record.guidance == 2.0
    plain = evaluate(model(), LABELLED, metrics="teacher_distance", n=6, teacher=teacher, teacher_steps=4, labels="balanced")
    assert record.metrics["teacher_distance"].value != plain.metrics["teacher_distance"].value


def test_a_teacher_that_dropped_labels_can_be_guided() -> None:
    student, teacher = model(guidance=Guidance("fixed", (2.0,))), model("denoiser")
    told = {"metrics": "teacher_distance", "n": 6, "teacher_steps": 4}
    expected = evaluate(student, LABELLED, teacher=model("denoiser", guidance=Guidance("free")), **told)
    teacher.card["recipe"] = {"label_dropout": 0.1}
    found = evaluate(student, LABELLED, teacher=teacher, **told)
    assert found.metrics["teacher_distance"].value == expected.metrics["teacher_distance"].value


def wrong_shape(x: Tensor, sigma: float) -> Tensor:
    return x[:, :, :2]


def fixed_size(x: Tensor, sigma: float) -> Tensor:
    return x + torch.zeros(1, 1, 7, 7)


def no_images(x: Tensor, sigma: float) -> Any:
    return None


def not_a_number(x: Tensor, sigma: float) -> Tensor:
    return x * torch.nan


def fails_late(x: Tensor, sigma: float) -> Tensor:
    return WORLD.denoiser(x, sigma) * (1.0 if sigma > 1 else torch.nan)


@pytest.mark.parametrize(
    ("subject", "options", "said"),
    [
        (Exact(), {}, "needs the teacher, an opened denoiser: give teacher="),
        (Exact(), {"teacher": "runs/teacher"}, "an opened denoiser"),
        (Exact(), {"teacher": 3}, "must be a denoiser or a function"),
        (Exact(), {"teacher": WORLD.denoiser, "teacher_steps": 1}, "at least 2 steps, got 1"),
        (Exact(), {"teacher": WORLD.denoiser, "teacher_steps": "9"}, "teacher_steps is '9', must be a whole number"),
        (Exact(), {"teacher": wrong_shape}, r"the teacher gave \[1, 1, 2, 4\] for x \[1, 1, 4, 4\]"),
        (Exact(), {"teacher": fixed_size}, r"cannot be called with x \[1, 1, 4, 4\] and sigma 80: "),
        (Exact(), {"teacher": no_images}, "the teacher gave NoneType for x"),
        (Exact(), {"teacher": not_a_number}, "the teacher gives values that are not finite"),
        (Exact(), {"teacher": fails_late, "teacher_steps": 4}, "the teacher gives values that are not finite"),
        (Exact(float("nan")), {"teacher": WORLD.denoiser}, "the model gives values that are not finite"),
        (model("denoiser"), {"teacher": WORLD.denoiser}, "is for consistency models, this one is a denoiser"),
        (model(), {"teacher": model()}, "the teacher is a consistency model for 1x4x4 images: give a denoiser for 1x4x4"),
        (model(), {"teacher": model("denoiser", sigma_max=40.0)}, "the teacher knows noise up to 40, the model starts at 80"),
        (model(), {"teacher": model("denoiser", labels=("a", "b", "c"))}, "other classes than the model"),
        (
            model(guidance=Guidance("fixed", (2.0,))),
            {"teacher": model("denoiser")},
            "guided at scale 2, the teacher knows no images without a class",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_named(subject: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(subject, LABELLED, metrics="teacher_distance", n=10, **options)


def test_a_conditional_model_needs_images_of_its_classes() -> None:
    with pytest.raises(InputError, match="needs images of the model's classes, gaussian has no such labels"):
        evaluate(model(), DATA, metrics="consistency_gap", n=10)
