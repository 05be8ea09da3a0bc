"""One step of a run: what it computes, that it does not matter how a batch is divided, and that it continues bit for bit."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atonce.core.distribution import World
from atonce.core.errors import InputError
from atonce.core.streams import Stream, dropout_masks, normal
from atonce.networks.unet import UNetConfig
from atonce.noise.worlds import Gaussian
from atonce.objectives.discrete import teacher_step
from atonce.training import engine as module
from atonce.training import presets
from atonce.training.engine import BINS, Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_pairs, stage_at

NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), embedding_mult=2)
FP32 = Options(precision="fp32")
ALONE = World()


class Data:
    """Normal images of standard deviation .5 and a label, as functions of the index."""

    def __init__(self, labels: int = 0) -> None:
        self.labels = labels

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        y = 0.5 * normal(7, index, (1, 4, 4), Stream.EVALUATE)
        return y, index % self.labels if self.labels else None


def recipe(preset: Callable[..., Recipe] = presets.ict, **changes: Any) -> Recipe:
    values: dict[str, Any] = {"images": 8000, "batch": 8, "network": NETWORK, "sigma_data": 0.5, "lr": 1e-3}
    return preset(**{**values, **changes})


def engine(of: Recipe, options: Options = FP32, world: World = ALONE, **arguments: Any) -> Engine:
    made = Engine(of, arguments.pop("data", Data()), world, options, **arguments)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():  # weights of ordinary size, so that every part of the network matters from the first step
        for parameter in made.network.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return made


def cd(**changes: Any) -> Recipe:
    return recipe(presets.ct, path="heun", mu=0.9, **changes)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "ict": lambda: recipe(dropout=0.3),
    "ct": lambda: recipe(presets.ct, dropout=0.1),
    "ect": lambda: recipe(presets.ect),
    "diffusion": lambda: recipe(presets.diffusion),
    "l1": lambda: recipe(distance="l1", weight="one", ema=(0.9, 0.99)),
}


def snapshot(made: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in made.tensors().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# ---- what a step computes


def by_hand(made: Engine, index: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """iCT's loss of each image, formula by formula, in float64: weights, distance and everything between."""
    r_ = made.recipe
    network = copy.deepcopy(made.network).double()
    y = made.data.batch(index)[0].double()
    z = normal(r_.seed, index, (1, 4, 4), Stream.NOISE).double()
    masks = [m.double() for m in dropout_masks(r_.seed, index, network.mask_sizes(), r_.dropout)]

    def f(x: Tensor, s: Tensor) -> Tensor:
        c = s[:, None, None, None]
        raw = network((x / (c**2 + 0.25).sqrt()), s.log() / 4, masks=masks)
        return 0.25 / ((c - 0.002) ** 2 + 0.25) * x + (c - 0.002) * 0.5 / (c**2 + 0.25).sqrt() * raw

    t, r = draw_pairs(r_, stage, index)
    difference = f(y + t[:, None, None, None] * z, t) - f(y + r[:, None, None, None] * z, r).detach()
    c = 0.00054 * 4  # sqrt(16)
    distance = (difference.square().sum((1, 2, 3)) + c**2).sqrt() - c
    return distance / (t - r), distance


def test_the_loss_of_ict_formula_by_formula() -> None:
    made = engine(recipe(dropout=0.3))
    index, stage = torch.arange(40, 72), Stage(points=21)
    terms, t = made.terms(index, stage, torch.float32)
    loss, distance = by_hand(made, index, stage)
    torch.testing.assert_close(terms.loss.double(), loss, rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(terms.distance.double(), distance, rtol=2e-4, atol=1e-7)
    assert torch.equal(t, draw_pairs(made.recipe, stage, index)[0].float())
    assert float((distance.max() / distance.min()).detach()) > 10  # pairs of very different distance were compared


def test_the_first_step_is_the_gradient_of_the_mean_loss() -> None:
    made = engine(recipe())
    terms, _ = made.terms(torch.arange(8), stage_at(made.recipe, 0), torch.float32)
    expected = torch.autograd.grad(terms.loss.mean(), list(made.network.parameters()))
    made.step()
    for parameter, gradient in zip(made.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_steps_with_finite_numbers(name: str) -> None:
    made = engine(RECIPES[name]())
    before = made.flat.values.detach().clone()
    for _ in range(3):
        made.step()
    assert bool(torch.isfinite(made.flat.gradient).all())
    assert bool(torch.isfinite(made.flat.values).all())
    assert not torch.equal(before, made.flat.values)
    assert made.images_seen == 24
    assert made.read_meters()["grad_norm"] > 0


def test_ect_starts_where_the_target_is_the_data() -> None:
    """At stage 0 r = 0 for t below 1.95: the target is the clean image, ln 0 reaches no gradient, and c = 0 no root."""
    made = engine(recipe(presets.ect, batch=64))
    t, r = draw_pairs(made.recipe, Stage(), torch.arange(64))
    assert 10 < int((r == 0).sum()) < 64
    outputs = _outputs(made, torch.arange(64), Stage())
    assert torch.equal(outputs[1][r == 0], Data().batch(torch.arange(64))[0][r == 0])
    made.step()
    assert bool(torch.isfinite(made.flat.gradient).all())
    assert made.read_meters()["grad_norm"] > 0


def _outputs(made: Engine, index: Tensor, stage: Stage) -> list[Tensor]:
    """What student and target give in one evaluation."""
    seen: list[Tensor] = []
    distance = made.distance
    made.distance = lambda a, b: (seen.extend((a, b)), distance(a, b))[1]
    made.terms(index, stage, torch.float32)
    made.distance = distance
    return seen


def _calls(network: nn.Module) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls


@pytest.mark.parametrize("target", ["student", "ema"])
def test_student_and_target_share_their_dropout_masks(target: str) -> None:
    made = engine(recipe(dropout=0.3, target=target))
    calls = _calls(made.network)
    others = calls if made.target is None else _calls(made.target)
    made.terms(torch.arange(5, 13), Stage(points=641), torch.float32)
    first, second = calls[0][1]["masks"], others[-1][1]["masks"]
    assert len(calls) + (len(others) if others is not calls else 0) == 2
    expected = dropout_masks(0, torch.arange(5, 13), made.network.mask_sizes(), 0.3)
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_masks_of_their_own_would_drown_the_pairs() -> None:
    """What the shared masks are for: with other masks in the target the distance of close pairs is many times larger."""
    made = engine(recipe(dropout=0.3))
    index, stage = torch.arange(64), Stage(points=1281)
    shared = float(made.terms(index, stage, torch.float32)[0].distance.median())
    original, count = made.student, iter(range(2))

    def second_call_with_others(*args: Any, masks: list[Tensor], **rest: Any) -> Tensor:
        return original(*args, masks=masks if next(count) == 0 else [m.roll(1, 0) for m in masks], **rest)

    made.student = made.target_student = second_call_with_others
    own = float(made.terms(index, stage, torch.float32)[0].distance.median())
    assert own > 3 * shared


def test_without_dropout_there_are_no_masks() -> None:
    made = engine(recipe(dropout=0.0))
    calls = _calls(made.network)
    made.terms(torch.arange(4), Stage(points=11), torch.float32)
    assert [kwargs["masks"] for _, kwargs in calls] == [None, None]


def test_distillation_goes_where_the_teacher_leads() -> None:
    world = Gaussian(0.0, 0.5)
    teacher = lambda x, sigma: world.denoiser(x, sigma).float()
    config = SimpleNamespace(preconditioning=lambda network, x, sigma, dtype, label: teacher(x, sigma))
    made = engine(cd(), teacher=SimpleNamespace(config=config, network=None))
    calls, others = _calls(made.network), _calls(made.target)  # type: ignore[arg-type]
    index, stage = torch.arange(16), Stage(points=18, mu=0.9)
    made.terms(index, stage, torch.float32)
    y, z = Data().batch(index)[0], normal(0, index, (1, 4, 4), Stream.NOISE)
    t, r = (s.float() for s in draw_pairs(made.recipe, stage, index))
    x_t = y + t[:, None, None, None] * z
    x_r = teacher_step(teacher, 2)(x_t, y, z, t, r)
    for (args, _), x, level in ((calls[0], x_t, t), (others[0], x_r, r)):
        torch.testing.assert_close(args[0], x / (level**2 + 0.25).sqrt()[:, None, None, None])
        torch.testing.assert_close(args[1], level.log() / 4)
    made.step()
    assert bool(torch.isfinite(made.flat.values).all())


def test_labels_and_their_dropout() -> None:
    network = dataclasses.replace(NETWORK, labels=3)
    made = engine(recipe(network=network, conditional=True, label_dropout=0.25), data=Data(3))
    calls = _calls(made.network)
    index = torch.arange(4000)
    made.terms(index, Stage(points=11), torch.float32)
    label = calls[0][1]["label"]
    assert torch.equal(label, calls[1][1]["label"])
    assert torch.equal(label[label >= 0], (index % 3)[label >= 0])
    assert abs(float((label == -1).double().mean()) - 0.25) < 0.03
    plain = engine(recipe(), data=Data(3))
    calls = _calls(plain.network)
    plain.terms(index[:4], Stage(points=11), torch.float32)
    assert calls[0][1]["label"] is None


# ---- the clock, the averages and the target


@pytest.mark.parametrize("mu", [0.0, 0.9, "ct-code"])
def test_the_target_follows_after_the_optimiser(mu: float | str) -> None:
    made = engine(recipe(presets.ct, mu=mu, batch=8))
    expected = made.target_flat.values.detach().clone()
    for _ in range(4):
        decay = stage_at(made.recipe, made.images_seen).mu
        made.step()
        expected = decay * expected + (1 - decay) * made.flat.values.detach()
        torch.testing.assert_close(made.target_flat.values.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_student_is_its_own_target_at_once() -> None:
    """mu = 0 without a second network: what the target computes is the student's present function, not an average."""
    made = engine(recipe(images=800, batch=8))
    assert made.target is None
    for _ in range(3):
        made.step()
    index, stage = torch.arange(8), Stage(points=11)
    target = _outputs(made, index, stage)[1]
    y, z = Data().batch(index)[0], normal(0, index, (1, 4, 4), Stream.NOISE)
    r = draw_pairs(made.recipe, stage, index)[1].float()
    masks = dropout_masks(0, index, made.network.mask_sizes(), 0.3)
    with torch.no_grad():
        expected = made.preconditioning(made.network, y + r[:, None, None, None] * z, r, masks=masks)
    torch.testing.assert_close(target, expected)


def test_init_starts_from_given_weights() -> None:
    trained = engine(recipe(seed=5))
    trained.step()
    started = Engine(recipe(presets.ct), Data(), ALONE, FP32, init=trained.weights())  # type: ignore[arg-type]
    assert_same(started.weights(), trained.weights())
    assert_same(started.weights("0.9999"), trained.weights())
    assert started.target is not None
    assert_same({k: v.cpu() for k, v in started.target.state_dict().items()}, trained.weights())


# ---- how a batch is divided


@pytest.mark.parametrize("name", ["ict", "ct", "ect"])
@pytest.mark.parametrize("microbatch", [1, 3, 8, 100])
def test_accumulation_equals_the_whole_batch(name: str, microbatch: int) -> None:
    whole, parts = engine(RECIPES[name]()), engine(RECIPES[name](), dataclasses.replace(FP32, microbatch=microbatch))
    for _ in range(3):
        whole.step()
        parts.step()
    gap = (whole.flat.gradient - parts.flat.gradient).norm() / whole.flat.gradient.norm()
    assert float(gap) < 1e-5
    moved = (whole.flat.values - engine(RECIPES[name]()).flat.values).norm()
    assert float((whole.flat.values - parts.flat.values).norm() / whole.flat.values.norm()) < 1e-6
    assert float(moved) > 1e-4
    a, b = whole.read_meters(), parts.read_meters()
    assert a["count_by_sigma"] == b["count_by_sigma"]
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("microbatch", [None, 2])
def test_the_shares_of_the_processes_cover_the_batch(size: int, microbatch: int | None) -> None:
    of = recipe(batch=8)
    seen = []
    for rank in range(size):
        made = engine(of, dataclasses.replace(FP32, microbatch=microbatch), World(rank=rank, size=size))
        made.images_seen = 24
        shares = list(made._microbatches())
        assert all(len(share) <= (microbatch or 8) for share in shares)
        seen += torch.cat(shares).tolist()
    assert seen == list(range(24, 32))


@pytest.mark.parametrize("size", [2, 3, 16])
def test_processes_together_make_the_step_of_one(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The gradients that the processes sum are those of one process; with more processes than images some have none."""
    alone = engine(recipe(dropout=0.2))
    alone.step()
    total = torch.zeros_like(alone.flat.gradient)
    counts = torch.zeros(BINS, dtype=torch.float64)
    for rank in range(size):
        sent: list[Tensor] = []
        monkeypatch.setattr(module, "all_sum", lambda tensor, sent=sent: (sent.append(tensor.clone()), tensor)[1])
        made = engine(recipe(dropout=0.2), world=World(rank=rank, size=size))
        made.step()
        assert made.images_seen == alone.images_seen
        total += sent[0]
        counts += made.meters[:BINS, 0]
    torch.testing.assert_close(total, alone.flat.gradient, rtol=1e-4, atol=1e-6)
    assert torch.equal(counts, alone.meters[:BINS, 0])


# ---- checkpoints


@pytest.mark.parametrize("name", RECIPES)
def test_it_continues_bit_for_bit(name: str) -> None:
    straight = engine(RECIPES[name]())
    for _ in range(3):
        straight.step()
    tensors, facts, seen = snapshot(straight), copy.deepcopy(straight.facts()), straight.images_seen
    for _ in range(4):
        straight.step()
    resumed = Engine(RECIPES[name](), Data(), ALONE, FP32)  # type: ignore[arg-type]
    resumed.load(seen, tensors, facts)
    assert_same(snapshot(resumed), tensors)
    for _ in range(4):
        resumed.step()
    assert_same(snapshot(resumed), snapshot(straight))
    assert resumed.facts() == straight.facts()
    assert resumed.images_seen == straight.images_seen
    assert resumed.read_meters() == straight.read_meters()


def test_a_precision_that_was_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision is decided once a stage; a resumed run must not decide again from other weights."""
    answers = iter([(0.0, 1.0)])
    monkeypatch.setattr(Engine, "_rounding", lambda self, index, stage: next(answers))
    half = Options(precision="bf16")
    straight = engine(recipe(), half)
    straight.step()
    tensors, facts, seen = snapshot(straight), copy.deepcopy(straight.facts()), straight.images_seen
    straight.step()
    resumed = Engine(recipe(), Data(), ALONE, half)  # type: ignore[arg-type]
    resumed.load(seen, tensors, facts)
    resumed.step()
    assert (straight.dtype, resumed.dtype) == (torch.bfloat16, torch.bfloat16)
    assert_same(snapshot(resumed), snapshot(straight))


def test_facts_are_json() -> None:
    import json

    made = engine(recipe())
    assert json.loads(json.dumps(made.facts())) == {"precision": "float32", "stage": None}
    made.step()
    assert json.loads(json.dumps(made.facts())) == {"precision": "float32", "stage": [11, 0]}


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    made = engine(recipe(dropout=0.3))
    made.step()
    assert torch.equal(before, torch.get_rng_state())


# ---- what is refused


def test_an_unresolved_recipe() -> None:
    for changes in ({"network": "tiny"}, {"sigma_data": "measured"}):
        with pytest.raises(InputError, match="not resolved"):
            engine(recipe(**changes))


@pytest.mark.parametrize("path", ["euler", "heun"])
def test_a_path_that_needs_a_teacher(path: str) -> None:
    with pytest.raises(InputError, match=f"path is '{path}', which needs a teacher"):
        engine(recipe(presets.ct, path=path))
