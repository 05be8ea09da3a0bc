"""Distillation in a run: what is asked of the teacher, guidance, and every teacher that does not fit, in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import atonce
from atonce.core.distribution import World
from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal, uniform
from atonce.data.augment import AUGMENT_LABELS, augment
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.networks.build import NetworkConfig, build
from atonce.networks.unet import UNetConfig
from atonce.objectives.discrete import teacher_step
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder
from atonce.training.schedule import draw_middle, draw_pairs, stage_at
from atonce.training.teacher import denoise

PLAIN = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())
LABELLED = dataclasses.replace(PLAIN, labels=10)
DIGITS = tuple(map(str, range(10)))


def network_of(config: NetworkConfig, seed: int = 5) -> Any:
    """A network that depends on everything it is told."""
    network = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return network


def make(config: NetworkConfig = PLAIN, card: dict[str, Any] | None = None, **changes: Any) -> ConsistencyModel:
    values: dict[str, Any] = {"preconditioning": Preconditioning("edm", 0.75, 0.0), "kind": "denoiser"} | changes
    return ConsistencyModel(ModelConfig(config, **values), network_of(config), card=card)


TEACHER = make()
CONDITIONAL = make(LABELLED, labels=DIGITS, guidance=Guidance("free"))


class Data:
    """Normal images with labels, as functions of the index."""

    def __init__(self, labels: int = 0) -> None:
        self.labels = labels

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        y = 0.5 * normal(7, index, (1, 8, 8), Stream.WORLD)
        return y, index % self.labels if self.labels else None


def cd(**changes: Any) -> Recipe:
    return presets.cd(**{"images": 64, "batch": 16, "teacher": TEACHER, "lr": 1e-2, "ema": (0.9,)} | changes)


def conditional(preset: Any = presets.cd, **changes: Any) -> Recipe:
    values = {"images": 6400, "batch": 16, "network": LABELLED, "sigma_data": 0.75, "conditional": True}
    return preset(**values | changes)


# ---- the plain call of the teacher


def test_the_teacher_is_called_as_the_model_is() -> None:
    x, sigma, label = (
        3.0 * normal(0, torch.arange(4), (1, 8, 8), Stream.NOISE),
        torch.full((4,), 3.0),
        torch.tensor([3, -1, 0, 9]),
    )
    plain: dict[str, Any] = {"dtype": torch.float32, "label": None, "guidance": None}
    torch.testing.assert_close(denoise(TEACHER, x, sigma, **plain), TEACHER(x, sigma))
    with_class = denoise(CONDITIONAL, x, sigma, **plain | {"label": label})
    torch.testing.assert_close(with_class, CONDITIONAL(x, sigma, label))
    w = torch.tensor([0.0, 5.0, 2.0, 3.0])
    guided = denoise(CONDITIONAL, x, sigma, **plain | {"label": label, "guidance": w})
    without = CONDITIONAL(x, sigma)
    torch.testing.assert_close(guided, without + w[:, None, None, None] * (with_class - without), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided[1], without[1], rtol=1e-4, atol=1e-4)  # no class: nothing to be guided by


# ---- augmentation: the teacher is told what was done to the image


@pytest.mark.parametrize("guidance", [None, 2.5], ids=["plain", "guided"])
def test_the_teacher_is_told_the_augmentations(guidance: float | None) -> None:
    config = dataclasses.replace(LABELLED, augment_labels=AUGMENT_LABELS)
    teacher = make(config, labels=DIGITS, guidance=Guidance("free"))
    recipe = conditional(network=config, augment=0.6, guidance=guidance)
    made = Engine(recipe, Data(10), World(), Options(precision="fp32"), teacher=teacher)  # type: ignore[arg-type]
    told: list[Tensor | None] = []
    teacher.network.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs.get("augment")), with_kwargs=True)
    index = torch.arange(40, 56)
    made.terms(index, stage_at(recipe, 0), torch.float32)
    _, labels = augment(Data(10).batch(index)[0], 0, index, 0.6)
    assert float(labels.abs().sum()) > 1
    assert len(told) == 2  # Heun's two calls
    for given in told:
        assert given is not None
        assert torch.equal(given, labels if guidance is None else torch.cat([labels, labels]))
    x, t = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((16,), 2.0)
    plain: dict[str, Any] = {"dtype": torch.float32, "label": None, "guidance": None}
    changed = denoise(teacher, x, t, **plain, augment=labels) - denoise(teacher, x, t, **plain)
    assert float(changed.abs().max()) > 1e-3  # and it hears


# ---- guidance in the engine


def spied(made: Engine, index: Tensor) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """(x, sigma, condition) of student and, where it has one, target."""
    seen: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
    original = made.preconditioning

    def spy(network: Any, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        seen.append((x.detach(), sigma, condition))
        return original(network, x, sigma, **condition)

    made.preconditioning = spy  # type: ignore[assignment]
    made.terms(index, stage_at(made.recipe, made.images_seen), torch.float32)
    made.preconditioning = original
    return seen


@pytest.mark.parametrize("path", ["euler", "heun"])
@pytest.mark.parametrize("guidance", [None, 2.5, (1.0, 4.0)], ids=["none", "fixed", "embedded"])
def test_the_pairs_follow_the_guided_teacher(path: str, guidance: Any) -> None:
    told = isinstance(guidance, tuple)
    recipe = conditional(path=path, guidance=guidance, label_dropout=0.3, network=dataclasses.replace(LABELLED, guidance=told))
    made = Engine(recipe, Data(10), World(), Options(precision="fp32"), teacher=CONDITIONAL)  # type: ignore[arg-type]
    index = torch.arange(100, 164)
    (x_t, t, student), (x_r, r, target) = spied(made, index)
    label = student["label"]
    dropped = label < 0
    assert 5 < int(dropped.sum()) < 35
    assert torch.equal(label[~dropped], (index % 10)[~dropped])
    assert torch.equal(label, target["label"])
    w: Any = 1.0 if guidance is None else guidance
    if told:
        w = (1.0 + 3.0 * uniform(0, index, 1, Stream.GUIDANCE)[:, 0]).float()
        assert torch.equal(student["guidance"], w)
        assert torch.equal(target["guidance"], w)
    else:
        assert "guidance" not in student
        assert "guidance" not in target

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        without = CONDITIONAL(x, sigma)
        scale = w[:, None, None, None] if told else w
        return without + scale * (CONDITIONAL(x, sigma, label) - without)

    expected = teacher_step(denoiser, 1 if path == "euler" else 2)(x_t, x_t, x_t, t, r)
    torch.testing.assert_close(x_r, expected, rtol=1e-4, atol=1e-4)
    if guidance is not None:
        plain = teacher_step(lambda x, s: CONDITIONAL(x, s, label), 1)(x_t, x_t, x_t, t, r)
        assert float((x_r - plain)[~dropped].abs().max()) > 0.1


def test_the_scales_are_spread_over_the_range_and_belong_to_the_image() -> None:
    recipe = conditional(path="euler", guidance=(1.0, 4.0), network=dataclasses.replace(LABELLED, guidance=True))
    made = Engine(recipe, Data(10), World(), Options(precision="fp32"), teacher=CONDITIONAL)  # type: ignore[arg-type]
    drawn = spied(made, torch.arange(800))[0][2]["guidance"]
    assert 1.0 <= float(drawn.min()) < 1.02
    assert 3.98 < float(drawn.max()) <= 4.0
    assert float(drawn.mean()) == pytest.approx(2.5, abs=0.12)
    assert float(drawn.std()) == pytest.approx(3 / 12**0.5, abs=0.06)
    assert torch.equal(spied(made, torch.arange(700, 710))[0][2]["guidance"], drawn[700:710])
    t = draw_pairs(recipe, stage_at(recipe, 0), torch.arange(800))[0]
    assert abs(float(torch.corrcoef(torch.stack([t.log(), drawn.double()]))[0, 1])) < 0.12


def test_guidance_enters_progressive_distillation_once() -> None:
    """The first student learns from the guided teacher; those after it from a student that has the guidance in its weights."""
    asked: list[Any] = []
    config = SimpleNamespace(
        preconditioning=lambda network, x, sigma, dtype, label: (
            asked.append(label),
            0.5 * x * (1 + label[:, None, None, None]),
        )[1]
    )
    recipe = conditional(presets.progressive, images=192, teacher_steps=4, guidance=3.0)
    made = Engine(recipe, Data(10), World(), Options(precision="fp32"), teacher=SimpleNamespace(config=config, network=None))  # type: ignore[arg-type]
    index = torch.arange(8)
    spied(made, index)
    none = torch.full((8,), -1)
    assert [label.tolist() for label in asked] == [torch.cat([index % 10, none]).tolist()] * 2  # both of its steps
    assert stage_at(recipe, 96).index == 1
    made.images_seen, made.stage = 96, stage_at(recipe, 96)
    assert made.target is not None
    seen = spied(made, index)
    assert len(asked) == 2
    assert len(seen) == 3  # the student, and twice the one before
    assert torch.equal(seen[2][1], draw_middle(recipe, made.stage, draw_pairs(recipe, made.stage, index)[0]).float())


# ---- a run


def test_a_distillation_run_names_its_teacher_and_resumes(tools, tmp_path: Path, monkeypatch) -> None:
    recipe = conditional(
        images=96,
        network="auto",
        sigma_data="measured",
        teacher=CONDITIONAL,
        guidance=(1.0, 3.0),
        target="ema",
        mu=0.9,
        lr=1e-2,
        label_dropout=0.2,
        ema=(0.9,),
    )
    whole = tools.train(tmp_path / "whole", recipe)
    step = Engine.step

    def die(self: Engine) -> None:
        if self.images_seen == 48:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Engine, "step", die)
    with pytest.raises(KeyboardInterrupt):
        tools.train(tmp_path / "run", recipe, checkpoint_seconds=0)
    monkeypatch.undo()
    run = tools.train(tmp_path / "run", recipe)
    tools.assert_same_run(run.folder, whole.folder)
    saved = RunFolder(run.folder).read_recipe()
    assert saved.teacher == saved.init
    assert saved.teacher is not None
    assert saved.teacher.startswith("model, sha256 ")
    assert saved.guidance == (1.0, 3.0)
    assert (saved.network, saved.sigma_data) == (dataclasses.replace(LABELLED, guidance=True), 0.75)
    model = atonce.load(run.folder)
    assert (model.kind, model.sigma_end, model.labels) == ("consistency", 0.002, list(DIGITS))
    assert model.config.guidance == Guidance("embedded", (1.0, 3.0))
    assert model.card["teacher"] == saved.teacher
    assert "| guidance | a condition of the network, from 1 to 3" in (run.folder / "model" / "README.md").read_text()
    assert float((model.sample(4, guidance=1.0) - model.sample(4, guidance=3.0)).abs().max()) > 0


def test_the_teacher_is_not_trained(tools, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in TEACHER.network.state_dict().items()}
    tools.train(tmp_path / "run", cd())
    tools.assert_same_tensors(before, dict(TEACHER.network.state_dict()))
    assert all(p.grad is None for p in TEACHER.parameters())
    assert not TEACHER.training


# ---- teachers that do not fit: one line, before the folder is made

CONSISTENCY = make(kind="consistency", preconditioning=Preconditioning("boundary", 0.75, 0.002))
LARGE = make(dataclasses.replace(PLAIN, size=16))
COLOUR = make(dataclasses.replace(PLAIN, image_channels=3))
NARROW = make(sigma_min=0.01, sigma_max=50.0)
FEW = make(dataclasses.replace(PLAIN, labels=3), labels=("cat", "dog", "owl"))
NAMED = make(LABELLED, labels=tuple(f"digit {i}" for i in range(10)))
SURE = make(LABELLED, labels=DIGITS, card={"recipe": {"label_dropout": 0.0}})
UNSURE = make(LABELLED, labels=DIGITS, card={"recipe": {"label_dropout": 0.1}})
LABELS = {"conditional": True}


def unlabelled() -> ImageData:
    return open_data("digits").without_labels()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teacher": None}, "path is 'heun', which needs a teacher: give one, or use path='same-noise'"),
        ({"teacher": None, "path": "euler"}, "path is 'euler', which needs a teacher"),
        ({"teacher": CONSISTENCY}, "the teacher is a consistency model for 1x8x8 images; needed is a denoiser for 1x8x8"),
        ({"teacher": LARGE}, "the teacher is a model for 1x16x16 images, the data have 1x8x8"),
        ({"teacher": COLOUR}, "the teacher is a model for 3x8x8 images, the data have 1x8x8"),
        ({"teacher": COLOUR, "init": TEACHER}, "the teacher is a denoiser model for 3x8x8 images; needed .* for 1x8x8"),
        (
            {"teacher": NARROW},
            "knows noise levels from 0.01 to 50, the recipe asks for 0.002 to 80: set sigma_min and sigma_max",
        ),
        ({"teacher": NARROW, "sigma_max": 50.0}, "from 0.01 to 50, the recipe asks for 0.002 to 50"),
        ({"teacher": NARROW, "sigma_min": 0.01}, "from 0.01 to 50, the recipe asks for 0.01 to 80"),
        ({"sigma_data": 0.5}, "init was trained with sigma_data 0.75, the recipe has 0.5: leave sigma_data='measured'"),
        (LABELS, "the recipe is class-conditional, the teacher has no labels"),
        ({"teacher": CONDITIONAL}, r"the teacher is class-conditional \(10 labels\): give the recipe conditional=True"),
        (LABELS | {"teacher": FEW}, r"the teacher's labels are cat, dog, owl \(3\), the data's 0, 1, 2, 3, ... \(10\)"),
        (
            LABELS | {"teacher": make(dataclasses.replace(PLAIN, labels=4))},
            r"the teacher's labels are 0, 1, 2, 3 \(4\), the data's 0, 1, 2, 3, ... \(10\): they must be the same",
        ),
        (
            LABELS | {"teacher": NAMED},
            r"the teacher's labels are digit 0, digit 1, digit 2, digit 3, ... \(10\), the data's 0, 1, 2.*: they must be the "
            "same; name the classes of the data so, in this order, or train a teacher on these data",
        ),
        (LABELS | {"teacher": SURE, "guidance": 2.0}, "guidance 2.0 needs a teacher that knows images without a class"),
        (LABELS | {"teacher": SURE, "guidance": (1.0, 2.0)}, r"guidance \(1.0, 2.0\) needs a teacher .* label_dropout=0.1"),
        (
            {"network": dataclasses.replace(PLAIN, channels=12)},
            r"another network \(channels: 8 there, 12 here\): .*network='auto'",
        ),
        (
            {"network": dataclasses.replace(PLAIN, guidance=True)},
            "the network has guidance=True, but the recipe gives it no range",
        ),
        (
            LABELS | {"teacher": UNSURE, "guidance": (1.0, 2.0), "network": LABELLED},
            "the network has guidance=False, the recipe needs True",
        ),
        ({"teacher": "nobody"}, "there is no model 'nobody'"),
        ({"teacher": TEACHER, "path": "same-noise"}, "a teacher is given, but .* path is 'same-noise' and needs none"),
    ],
)
def test_what_does_not_fit_is_named_before_the_folder_is_made(tools, tmp_path: Path, changes: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        tools.train(tmp_path / "run", cd(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["cd", "progressive"])
def test_classes_without_names_go_with_any(tools, tmp_path: Path, preset: str) -> None:
    """A teacher whose classes are numbers and data with names, and the other way round; the student has the data's."""
    plain = open_data("digits")
    named = dataclasses.replace(plain, label_names=tuple(f"class {i}" for i in range(10)))
    changes: dict[str, Any] = {"conditional": True, "images": 32, "batch": 16}
    changes |= {"teacher_steps": 4} if preset == "progressive" else {}
    recipe = presets.PRESETS[preset](teacher=make(LABELLED), **changes)
    model = tools.train(tmp_path / "run", recipe, named, evaluate_images=2).model
    assert model.labels == list(named.label_names)
    numbered = dataclasses.replace(plain, label_names=None)
    recipe = presets.PRESETS[preset](teacher=make(LABELLED, labels=named.label_names), **changes)
    assert tools.train(tmp_path / "other", recipe, numbered, evaluate_images=2).finished


@pytest.mark.parametrize("preset", ["ict", "ct", "ect", "diffusion"])
def test_a_teacher_where_there_is_nothing_to_distil(tools, tmp_path: Path, preset: str) -> None:
    with pytest.raises(InputError, match="a teacher is given, but recipe field path is '(same-noise|data)' and needs none"):
        tools.train(tmp_path / "run", tools.make_recipe(preset), teacher=TEACHER)
    assert not (tmp_path / "run").exists()


def test_data_without_labels(tools, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label"):
        tools.train(tmp_path / "run", cd(teacher=CONDITIONAL, conditional=True), unlabelled())
    with pytest.raises(InputError, match="give the recipe conditional=True"):
        tools.train(tmp_path / "run", cd(teacher=CONDITIONAL), unlabelled())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"guidance": 2.0}, "guidance needs labels: set conditional=True"),
        ({"guidance": (1.0, 3.0)}, "guidance needs labels: set conditional=True"),
        ({"guidance": -1.0, "conditional": True}, "guidance is -1.0, must be a scale from 0 to 100, or a pair"),
        ({"guidance": 101, "conditional": True}, "guidance is 101, must be a scale"),
        ({"guidance": True, "conditional": True}, "guidance is True, must be a scale"),
        ({"guidance": "strong", "conditional": True}, "guidance is 'strong', must be a scale"),
        ({"guidance": float("nan"), "conditional": True}, "guidance is nan, must be a scale"),
        (
            {"guidance": (3.0, 1.0), "conditional": True},
            r"guidance is \(3.0, 1.0\), must be a scale .* or a pair \(low, high\)",
        ),
        ({"guidance": (1.0, 1.0), "conditional": True}, r"guidance is \(1.0, 1.0\)"),
        ({"guidance": (1.0, 2.0, 3.0), "conditional": True}, r"guidance is \(1.0, 2.0, 3.0\)"),
        ({"guidance": (), "conditional": True}, r"guidance is \(\)"),
        (
            {"guidance": 2.0, "conditional": True, "path": "same-noise"},
            "guidance is of a teacher, and path='same-noise' has none",
        ),
        ({"s0": 20}, r"s1 is 17, must be at least s0 \(20\): the curriculum refines the grid"),
        ({"s1": 1}, "s1 is 1, must be a whole number, from 2"),
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=f"recipe field {text}") as caught:
        presets.cd(6400, 16, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["ict", "ct", "diffusion"])
def test_guidance_where_there_is_no_teacher(preset: str) -> None:
    with pytest.raises(
        InputError, match="recipe field guidance is of a teacher, and path='.*' has none: leave it out, or distil"
    ):
        presets.PRESETS[preset](conditional=True, guidance=2.0)


def test_a_scale_of_one_asks_nothing_of_the_teacher(tools, tmp_path: Path) -> None:
    assert tools.train(tmp_path / "run", cd(images=16, conditional=True, teacher=SURE, guidance=1.0)).finished
