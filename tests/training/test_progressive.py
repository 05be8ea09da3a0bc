"""Progressive distillation as a run: grids and stages on the clock, who teaches whom, what is kept, and resuming."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.build import build
from atonce.objectives.progressive import truncated_snr, two_steps
from atonce.preconditioning import Preconditioning
from atonce.sampling.times import denoiser_times
from atonce.training import presets
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.engine import Engine
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_middle, draw_pairs, halving_grid, halvings, learning_rate, stage_at

PAIRS = torch.arange(3000)


@pytest.fixture(scope="module")
def teacher(tools) -> ConsistencyModel:
    """A denoiser whose last layer is not as good as zero, so that its ODE is more than the preconditioning's."""
    network = build(tools.NETWORK, seed=5)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "aux_conv" in name:
                value.mul_(1e5)
    return ConsistencyModel(ModelConfig(tools.NETWORK, Preconditioning("edm", 0.75, 0.0), kind="denoiser"), network)


def make(teacher: ConsistencyModel | None, images: int = 192, steps: int = 8, **changes: Any) -> Recipe:
    """Three halvings of four batches each."""
    return presets.progressive(images, 16, teacher=teacher, teacher_steps=steps, lr=1e-2, **changes)


# ---- on the clock


@pytest.mark.parametrize("steps", [2, 4, 8, 64])
def test_the_grids_are_the_samplers_and_nested(steps: int) -> None:
    recipe = make(None, images=19200, steps=steps, sigma_min=0.01, sigma_max=50.0, rho=5.0)
    assert halving_grid(recipe, steps) == denoiser_times(steps, 0.01, 50.0, 5.0)
    count = steps
    while count > 1:
        fine, coarse = halving_grid(recipe, count), halving_grid(recipe, count // 2)
        assert coarse == fine[::2]
        assert (len(coarse), coarse[0], coarse[-1]) == (count // 2 + 1, 50.0, 0.0)
        count //= 2


def test_the_stages_share_the_budget_equally() -> None:
    recipe = make(None)
    assert halvings(recipe) == 3
    found = [stage_at(recipe, k) for k in (0, 63, 64, 127, 128, 191, 192, 10_000)]
    assert [(s.index, s.points) for s in found] == [(0, 5), (0, 5), (1, 3), (1, 3), (2, 2), (2, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pairs_are_the_students_intervals_and_the_teacher_stops_between_them(index: int) -> None:
    recipe = make(None)
    stage = stage_at(recipe, 64 * index)
    t, r = draw_pairs(recipe, stage, PAIRS)
    middle = draw_middle(recipe, stage, t.float().double())  # as the engine gives it, through single precision
    fine = torch.tensor(halving_grid(recipe, 2 * (stage.points - 1)), dtype=torch.float64)
    where = (t[:, None] == fine).nonzero()[:, 1]
    assert bool((where % 2 == 0).all())
    assert torch.equal(middle, fine[where + 1])
    assert torch.equal(r, fine[where + 2])
    assert bool(((r < middle) & (middle < t)).all())
    counts = torch.bincount(where // 2, minlength=stage.points - 1).double()
    expected = len(PAIRS) / (stage.points - 1)
    assert float((counts - expected).abs().max()) < 5 * expected**0.5 + 1e-9


def test_each_student_has_a_schedule_of_its_own() -> None:
    recipe = make(None)
    rates = [learning_rate(recipe, k) for k in range(0, 192, 16)]
    assert rates[:4] == rates[4:8] == rates[8:] == pytest.approx([1e-2 * f for f in (1, 0.853553, 0.5, 0.146447)], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teacher_steps": 6}, "teacher_steps is 6, must be a power of two"),
        ({"teacher_steps": 1}, "teacher_steps is 1, must be a whole number, from 2 to 4096"),
        ({"guidance": (1.0, 2.0), "conditional": True}, "guidance must be one scale for progressive distillation"),
        ({"target": "student"}, "belong together"),
        ({"images": 47}, "images is 47, too few for the 3 halvings of teacher_steps 8 in batches of 16: give 96 or more"),
        ({"images": 80, "batch": 30}, "images is 80, too few"),  # two whole batches, at 0 and 30: the last stage has none
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, Any], text: str) -> None:
    values = {"images": 192, "batch": 16, "teacher_steps": 8} | changes
    with pytest.raises(InputError, match=text) as caught:
        presets.progressive(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [1, 7, 16, 30, 33])
@pytest.mark.parametrize("steps", [2, 4, 8, 64])
def test_a_budget_that_is_accepted_gives_every_student_a_batch(batch: int, steps: int) -> None:
    stages = steps.bit_length() - 1
    for images in range(batch, 2 * stages * batch + 1):
        seen = {min(k * batch * stages // images, stages - 1) for k in range(images // batch)}
        try:
            presets.progressive(images, batch, teacher_steps=steps)
        except InputError:
            assert images < 2 * stages * batch  # what the message says is enough
            assert len(seen) < stages
        else:
            assert len(seen) == stages


# ---- who teaches whom


def spied(made: Engine, stage: Stage) -> tuple[Tensor, Tensor, Any]:
    """x_t and what the student is to give, of one evaluation, and the terms."""
    seen: list[Tensor] = []
    distance, original = made.distance, made.preconditioning
    inputs: list[Tensor] = []

    def spy(network: Any, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        inputs.append(x.detach())
        return original(network, x, sigma, **condition)

    made.distance = lambda a, b: (seen.append(b), distance(a, b))[1]
    made.preconditioning = spy  # type: ignore[assignment]
    terms, _ = made.terms(torch.arange(24), stage, torch.float32)
    made.distance, made.preconditioning = distance, original
    return inputs[0], seen[0], terms


def test_the_teacher_teaches_the_first_student_and_each_student_the_next(tools, teacher, tmp_path, monkeypatch) -> None:
    """In a run: the target is D of two steps, of the teacher in the first stage and of the student that has ended after it."""
    step = Engine.step
    checked: list[int] = []

    def watched(self: Engine) -> None:
        stage = stage_at(self.recipe, self.images_seen)
        first, ended = self.images_seen % 64 == 0, self.weights()
        step(self)
        if not first:
            return
        network = build(self.recipe.network, None)
        network.load_state_dict(teacher.network.state_dict() if stage.index == 0 else ended)
        edm = Preconditioning("edm", 0.75, 0.0)
        x_t, goal, terms = spied(self, stage)
        t, r = draw_pairs(self.recipe, stage, torch.arange(24))
        middle = draw_middle(self.recipe, stage, t)
        with torch.no_grad():
            path = two_steps(lambda x, s: edm(network, x, s), middle.float())
            expected = path(x_t, x_t, x_t, t.float(), r.float())
        torch.testing.assert_close(goal, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(terms.loss, truncated_snr(t.float()) * terms.distance)
        checked.append(stage.index)

    monkeypatch.setattr(Engine, "step", watched)
    tools.train(tmp_path / "run", make(teacher))
    assert checked == [0, 1, 2]


# ---- what is left


@pytest.fixture(scope="module")
def run(tools, teacher, tmp_path_factory):
    """An uninterrupted run, and the weights of its students at the end of their stages."""
    step, ends = Engine.step, {}

    def watched(self: Engine) -> None:
        step(self)
        if self.images_seen % 64 == 0:
            ends[self.images_seen] = self.weights()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", watched)
        done = tools.train(tmp_path_factory.mktemp("progressive") / "run", make(teacher))
    assert done.finished
    return done, ends


def test_the_students_of_four_and_two_steps_are_kept(tools, run) -> None:
    done, ends = run
    for model in (done.model, ConsistencyModel.from_pretrained(done.folder / "model")):
        assert model.ema_names == ["1-step", "4-steps", "2-steps"]
        assert (model.kind, model.config.sampler) == ("denoiser", "euler")
        for name, seen in ((None, 192), ("4-steps", 64), ("2-steps", 128)):
            tools.assert_same_tensors(dict(model._network(name).state_dict()), ends[seen])
    assert not torch.equal(done.model.sample(2, ema="4-steps"), done.model.sample(2, ema="2-steps"))


@pytest.mark.parametrize(("steps", "ema"), [(1, None), (1, "1-step"), (2, "2-steps"), (4, "4-steps")])
def test_a_student_is_sampled_on_its_own_grid(run, steps: int, ema: str | None) -> None:
    """Euler's steps on the levels it was trained at, one call each; so the first to third student agree where they must."""
    model, seen = run[0].model, []
    grid = halving_grid(make(None), steps)
    x = model.sample(3, steps, 5, ema=ema, callback=seen.append)
    assert [info["sigma"] for info in seen] == grid[:-1]
    assert [info["calls"] for info in seen] == list(range(1, steps + 1))
    assert [info["done"] for info in seen][-1] == 3
    from atonce.core.streams import Stream, normal
    from atonce.sampling.ode import integrate

    network = model._network(ema)
    f = lambda x, s: model.config.preconditioning(network, x, torch.full((3,), s))
    state, calls = integrate(f, 80.0 * normal(5, torch.arange(3), (1, 8, 8), Stream.SAMPLE), grid, 1)
    assert calls == steps
    torch.testing.assert_close(x, state.clamp(-1, 1), rtol=0, atol=1e-4)
    assert torch.equal(x, model.sample(3, steps, 5, ema=ema, sampler="euler"))
    if steps > 1:
        model.sample(1, steps, ema=ema, sampler="heun", callback=seen.append)
        assert seen[-1]["calls"] == 2 * steps - 1


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_student_is_the_one_that_has_learnt_the_steps(run, steps: int) -> None:
    name = {1: "1-step", 2: "2-steps", 4: "4-steps"}[steps]
    for model in (run[0].model, ConsistencyModel.from_pretrained(run[0].folder / "model")):
        images = model.sample(3, steps, 5)
        assert torch.equal(images, model.sample(3, steps, 5, ema=name))
        others = [other for other in ("1-step", "2-steps", "4-steps") if other != name]
        assert not any(torch.equal(images, model.sample(3, steps, 5, ema=other)) for other in others)
        grid = halving_grid(make(None), steps)[:-1]
        assert torch.equal(model.sample(3, seed=5, sigmas=grid), images)  # also where the levels are given


@pytest.mark.parametrize("steps", [3, 8, 18])
def test_steps_that_no_student_has_learnt_are_refused(run, steps: int) -> None:
    with pytest.raises(InputError, match=f"steps is {steps}, and each student .* here 1, 2, 4: choose one of these, or name"):
        run[0].model.sample(1, steps)
    assert torch.isfinite(run[0].model.sample(1, steps, ema="1-step")).all()
    assert torch.isfinite(run[0].model.sample(1, sigmas=[80.0, 5.0, 1.0])).all()


def test_a_model_saved_on_the_way_is_the_student_of_its_stage(tools, teacher, tmp_path) -> None:
    recipe, cards = make(teacher, images=192), []
    from atonce.training.loop import _Loop

    with pytest.MonkeyPatch.context() as patch:
        model_of = _Loop.model
        patch.setattr(_Loop, "model", lambda self: (cards.append((m := model_of(self)).card), m)[1])
        tools.train(tmp_path / "run", recipe, evaluate_every=64)
    named = [(card["images_seen"], card["student_steps"], card["ema"]) for card in cards]
    assert named[:3] == [(64, 4, "4-steps"), (128, 2, "2-steps"), (192, 1, "1-step")]
    assert ["weights" in card for card in cards[:3]] == [False, False, True]


def test_the_card_says_what_the_weights_are(run) -> None:
    text = (run[0].folder / "model" / "README.md").read_text()
    assert "| weights | the one-step student; those of two and four steps are kept under the names of ema |" in text
    assert "| teacher | model, sha256 " in text
    assert '"teacher_steps": 8' in text


@pytest.mark.parametrize(("steps", "names"), [(2, ["1-step"]), (4, ["1-step", "2-steps"])])
def test_short_chains_keep_what_there_is(tools, teacher, tmp_path, steps: int, names: list[str]) -> None:
    model = tools.train(tmp_path / "run", make(teacher, images=64, steps=steps)).model
    assert model.ema_names == names
    assert ("weights" in model.card) == (steps > 2)
    with pytest.raises(InputError, match=f"ema '4-steps' is not in this model; present: {', '.join(names)}$"):
        model.sample(1, ema="4-steps")


def test_evaluations_sample_with_the_steps_of_the_student_that_stands(tools, teacher, tmp_path) -> None:
    """Also where a batch reaches over the end of a stage: of 200 images the first stage has 66.7, so its batches end at 80."""
    recipe = make(teacher, images=200)
    tools.train(tmp_path / "run", recipe, evaluate_every=80)
    lines = [line for line in tools.log_of(tmp_path / "run") if "steps" in line]
    assert [(line["images"], line["steps"]) for line in lines] == [(80, 4), (160, 1), (192, 1)]


# ---- interrupted


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("images", [64, 144])
def test_killed_anywhere_and_resumed_it_is_the_same_run(tools, teacher, run, tmp_path, monkeypatch, images: int) -> None:
    step = Engine.step

    def die(self: Engine) -> None:
        if self.images_seen == images:
            raise Interrupted
        step(self)

    monkeypatch.setattr(Engine, "step", die)
    with pytest.raises(Interrupted):
        tools.train(tmp_path / "run", make(teacher), checkpoint_seconds=0)
    monkeypatch.undo()
    checkpoint = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.images_seen == images
    # A student is kept when the next one begins: a checkpoint at the very end of its stage still has it as the live one.
    kept = {name.removeprefix("kept/") for name in checkpoint.tensors if name.startswith("kept/")}
    assert kept == {name for name, end in (("4-steps", 64), ("2-steps", 128)) if images > end}
    tools.train(tmp_path / "run", make(teacher))
    tools.assert_same_run(tmp_path / "run", run[0].folder)
    names = {name.split("/")[0] for name in newest_checkpoint(tmp_path / "run" / "checkpoints").tensors}
    assert names >= {"target", "kept"}


def test_a_signal_at_a_line_of_the_log(tools, teacher, run, tmp_path) -> None:
    """Lines stand at the ends of stages here: the checkpoint of a clean stop is exactly at a boundary."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    seen: list[Any] = []

    def callback(values: dict[str, Any]) -> None:
        seen.append(values)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = tools.train(tmp_path / "run", make(teacher), callback=callback)
    assert not stopped.finished
    assert stopped.images_seen == 128
    assert tools.train(tmp_path / "run", make(teacher)).finished
    tools.assert_same_run(tmp_path / "run", run[0].folder)


def test_the_gradient_by_noise_level_is_of_the_student_that_stands(tools, teacher, tmp_path, monkeypatch) -> None:
    """At the end of a stage the next teacher is not there yet: the evaluation looks at the stage that has ended."""
    stages: list[int] = []
    original = Engine.gradient_by_sigma

    def watched(self: Engine) -> list[float | None]:
        terms = self.terms

        def spy(index: Tensor, stage: Stage, dtype: torch.dtype) -> Any:
            stages.append(stage.index)
            return terms(index, stage, dtype)

        self.terms = spy  # type: ignore[method-assign]
        try:
            return original(self)
        finally:
            del self.terms

    monkeypatch.setattr(Engine, "gradient_by_sigma", watched)
    tools.train(tmp_path / "run", make(teacher), evaluate_every=64)
    assert sorted(set(stages)) == [0, 1, 2]
    assert stages == sorted(stages)


def test_a_run_folder_is_a_model_and_its_recipe_a_recipe(run, tmp_path: Path) -> None:
    import atonce
    from atonce.training.rundir import RunFolder

    model = atonce.load(run[0].folder)
    assert torch.equal(model.sample(2, 2, ema="2-steps"), run[0].model.sample(2, 2, ema="2-steps"))
    recipe = RunFolder(run[0].folder).read_recipe()
    assert recipe.teacher == recipe.init
    assert Recipe.from_dict(recipe.as_dict()) == recipe
