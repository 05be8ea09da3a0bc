"""The work of an inspection: every part, for each kind of model, with progress that ends where it was planned to."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.core.progress import Progress
from atonce.model import ConsistencyModel, Guidance
from atonce.reports import inspection_work as work
from atonce.reports.inspection_work import check_inspection, guidance_scales, inspect_model


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """The progress bars that are made."""
    made: list[Progress] = []

    class Seen(Progress):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(work, "Progress", Seen)
    return made


def model_of(inspected: ModuleType, name: str) -> ConsistencyModel:
    match name:
        case "unconditional":
            return inspected.untrained()
        case "colour, classes, embedded scale":
            guidance = Guidance("embedded", (1.0, 3.0))
            return inspected.untrained(channels=3, labels=3, guidance=guidance, network={"guidance": True})
        case "denoiser":
            return inspected.untrained("denoiser")
        case "denoiser, free guidance":
            return inspected.untrained("denoiser", labels=3, guidance=Guidance("free"))
        case "denoiser of one step":
            return inspected.untrained("denoiser", sampler="euler", time_points={1: (80.0,)})
    raise AssertionError(name)


NAMES = (
    "unconditional",
    "colour, classes, embedded scale",
    "denoiser",
    "denoiser, free guidance",
    "denoiser of one step",
)


def test_denoisers_take_eighteen_steps(inspected: ModuleType) -> None:
    steps = {name: work.default_steps(model_of(inspected, name)) for name in NAMES}
    assert steps == dict(zip(NAMES, (1, 1, 18, 18, 1), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_model_is_inspected_as_planned(
    inspected: ModuleType, bars: list[Progress], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(work, "ODE_STEPS", 5)  # a denoiser's eighteen take long here
    model = model_of(inspected, name)
    classes = len(model.labels or [])
    data = inspected.material(channels=model.shape[0], labels=classes)
    made = inspect_model(model, data, seed=2, samples=5, quiet=True)
    assert bars[0].done == bars[0].total
    assert not model.network._forward_hooks

    assert torch.equal(made.samples, model.sample(5, made.steps, 2))
    assert made.steps == (5 if name in ("denoiser", "denoiser, free guidance") else 1)
    assert [rung.steps for rung in made.ladder] == ([2, 4, 8, 5] if made.steps > 1 else [1, 2, 4])
    for before, rung in zip(made.ladder, made.ladder[1:], strict=False):
        assert rung.change == pytest.approx(float((rung.images - before.images).square().mean().sqrt()), rel=1e-5)
    assert made.curves is not None
    assert made.curves.images == 64
    assert (made.curves.error_exact is None) == (model.kind == "denoiser")
    assert made.neighbours is not None
    assert made.neighbours.searched == 300
    assert len(made.noised) == 2
    assert made.missing == ""
    assert made.teacher is None
    assert made.full_covariance == (model.shape[0] == 1)
    assert (made.by_class is None) == (classes == 0)
    if made.by_class is not None:
        assert made.by_class.images.shape == (3, 6, *model.shape)
        assert made.by_class.guided is not None
        assert made.by_class.guided.shape == (3, 3, *model.shape)
    for value in (made.samples, made.interpolation.images, made.sensitivity.maps, *(p.answers for p in made.ways)):
        assert torch.isfinite(value).all()


def test_the_same_seed_gives_the_same_inspection(inspected: ModuleType) -> None:
    model, data = inspected.untrained(labels=3), inspected.material(labels=3)
    one, two, other = (inspect_model(model, data, seed=s, samples=4, quiet=True).numbers() for s in (1, 1, 2))
    assert one == two
    assert one != other


def test_without_data_the_rest_is_made_and_the_reason_kept(inspected: ModuleType, bars: list[Progress]) -> None:
    made = inspect_model(inspected.untrained(), missing="nobody has them", samples=4, quiet=True)
    assert (made.curves, made.neighbours, made.material, made.full_covariance, made.noised) == (None, None, None, None, ())
    assert made.missing == "nobody has them"
    assert len(made.ways) == 2
    assert made.numbers()["without_data"] == "nobody has them"
    assert bars[0].done == bars[0].total


@pytest.mark.parametrize("guided", [False, True])
def test_a_teacher_is_followed(inspected: ModuleType, bars: list[Progress], guided: bool) -> None:
    if guided:
        model = inspected.untrained(labels=3, guidance=Guidance("fixed", (2.0,)))
        teacher = inspected.untrained("denoiser", labels=3, guidance=Guidance("free"))
    else:
        model, teacher = inspected.known("consistency"), inspected.known("denoiser")
    made = inspect_model(model, teacher=teacher, samples=4, quiet=True)
    assert made.teacher is not None
    assert made.teacher.guidance == (2.0 if guided else None)
    assert bars[0].done == bars[0].total
    assert not teacher.network._forward_hooks
    if not guided:  # both are exact: what is left is the error of 18 steps of Heun, whose gain is a known number
        z = work._Subject(model, 0, 1).noise(4, 8)
        lengths = z.double().square().flatten(1).mean(1).sqrt()
        error = 80 * (0.00659530796 - 0.5 / math.sqrt(0.25 + 6400))
        assert made.teacher.distances[0] == pytest.approx(float(lengths.mean()) * error, rel=1e-4)
        assert made.numbers()["teacher_distance"]["rms"] == made.teacher.distances


def test_an_exact_model_lies_on_the_curves_of_its_world(inspected: ModuleType) -> None:
    made = inspect_model(inspected.known("consistency"), inspected.material(2000), samples=4, quiet=True)
    assert made.curves is not None
    ours, exact = torch.tensor(made.curves.gap.values), torch.tensor(made.curves.gap_exact.values)
    torch.testing.assert_close(ours, exact, rtol=0.05, atol=1e-4)
    # At the largest level an exact answer is a sample of its own: sqrt 2 times as far as the mean.
    ratio = made.curves.error.values[-1] / made.curves.error_linear.values[-1]
    assert ratio == pytest.approx(math.sqrt(2), rel=0.05)


def test_interpolations_begin_and_end_at_their_noises(inspected: ModuleType) -> None:
    model = inspected.known("consistency")
    made = inspect_model(model, samples=4, seed=5, quiet=True).interpolation
    subject = work._Subject(model, 5, 1)
    for column, part in ((0, 1), (-1, 2)):
        torch.testing.assert_close(made.images[:, column], subject.generate(subject.noise(part, 4), None))
    # The exact function is linear here, so the arc keeps its length and its steps are equal.
    assert float(made.jumps.std() / made.jumps.mean()) < 0.1


def test_an_exact_pixelwise_model_is_decided_by_its_own_noise(inspected: ModuleType) -> None:
    assert inspect_model(inspected.known("consistency"), samples=4, quiet=True).sensitivity.inside == pytest.approx(1.0)


def test_scales_of_guidance(inspected: ModuleType) -> None:
    assert guidance_scales(inspected.untrained()) == ()
    assert guidance_scales(inspected.untrained(labels=2, guidance=Guidance("fixed", (2.0,)))) == ()
    assert guidance_scales(inspected.untrained("denoiser", labels=2, guidance=Guidance("free"))) == (1.0, 2.0, 4.0)
    embedded = {"labels": 2, "network": {"guidance": True}}
    assert guidance_scales(inspected.untrained(guidance=Guidance("embedded", (1.0, 4.0)), **embedded)) == (1.0, 2.5, 4.0)
    embedded = {"labels": 2, "network": {"guidance": True}}
    assert guidance_scales(inspected.untrained(guidance=Guidance("embedded", (2.0, 2.0)), **embedded)) == (2.0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, r"samples is 1, must be from 2 to 4,096"),
        ({"samples": 5000}, r"samples is 5000"),
        ({"seed": -1}, r"seed is -1, must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(inspected: ModuleType, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect_model(inspected.untrained(), **options)


def test_images_that_are_no_pictures_are_refused(inspected: ModuleType) -> None:
    with pytest.raises(InputError, match="pictures have 1 or 3 channels, the model's images have 4"):
        check_inspection(inspected.untrained(channels=4), None, 0, 64)


def test_the_hooks_are_gone_after_a_failure(inspected: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = inspected.untrained()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "_ladder", fail)
    with pytest.raises(KeyboardInterrupt):
        inspect_model(model, samples=4, quiet=True)
    assert not model.network._forward_hooks
