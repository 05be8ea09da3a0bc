"""Where a run starts from: exactly where the given model stands, whatever the network is told in addition."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import atonce
from atonce.core.errors import InputError
from atonce.data.augment import AUGMENT_LABELS
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.model_files import model_identity
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig, build
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder
from atonce.training.start import resolve, starting_weights

UNET = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
NCSN = dataclasses.replace(UNET, embedding="fourier", noise_mult=2, encoder="residual", taps=(1, 3, 3, 1))
ADM = ADMConfig(8, 1, channels=32, channel_mult=(1,), blocks=1, attention=(), head_channels=32)
NETWORKS = {"unet": UNET, "ncsnpp": NCSN, "adm": ADM}


def network_of(config: NetworkConfig, seed: int = 5) -> nn.Module:
    """A network that depends on everything it is told."""
    network = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return network


def make(config: NetworkConfig = UNET, **changes: Any) -> ConsistencyModel:
    values: dict[str, Any] = {"preconditioning": Preconditioning("edm", 0.75, 0.0), "kind": "denoiser"} | changes
    return ConsistencyModel(ModelConfig(config, **values), network_of(config))


def recipe_of(network: NetworkConfig, **changes: Any) -> Recipe:
    values = {"network": network, "sigma_data": 0.75, "conditional": bool(network.labels)}
    return presets.ict(6400, 16, **values | changes)


def started(init: ConsistencyModel, recipe: Recipe) -> nn.Module:
    network = build(recipe.network, 1)  # type: ignore[arg-type]
    network.load_state_dict(starting_weights(init, recipe))
    return network


def inputs(n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.linspace(-1.5, 1.1, n)


def digits() -> ImageData:
    return open_data("digits")


# ---- the start is exact


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_gets_the_same_weights(tools, name: str) -> None:
    init = make(NETWORKS[name])
    tools.assert_same_tensors(starting_weights(init, recipe_of(NETWORKS[name])), init.network.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("added", [{"labels": 7}, {"augment_labels": AUGMENT_LABELS}, {"labels": 7, "augment_labels": 9}])
def test_what_the_network_is_told_in_addition_changes_nothing_at_first(name: str, added: dict[str, int]) -> None:
    init = make(NETWORKS[name])
    network = started(init, recipe_of(dataclasses.replace(NETWORKS[name], **added)))
    x, c_noise = inputs()
    expected = init.network(x, c_noise)
    told: dict[str, Tensor] = {}
    if "labels" in added:
        told["label"] = torch.tensor([0, 1, 6, -1, 3, -1])
    if "augment_labels" in added:
        told["augment"] = torch.rand(6, 9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(network(x, c_noise, **told), expected)
    network(x, c_noise, **told).square().sum().backward()  # and all of it can be learnt
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        if parameter_name.startswith(("map_label.weight", "map_augment.")):
            assert float(parameter.grad.abs().max()) > 0, parameter_name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_guidance_scale_is_added_to_a_conditional_network(name: str) -> None:
    config = dataclasses.replace(NETWORKS[name], labels=4)
    init = make(config, guidance=Guidance("free"))
    network = started(init, recipe_of(dataclasses.replace(config, guidance=True)))
    x, c_noise = inputs()
    label = torch.tensor([0, 1, 3, -1, 2, -1])
    assert torch.equal(
        network(x, c_noise, label=label, guidance=torch.linspace(0, 5, 6)), init.network(x, c_noise, label=label)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_augmentation_labels_of_the_model_are_left_out(name: str) -> None:
    """Where nothing is augmented they are zero, so what remains is the same function."""
    init = make(dataclasses.replace(NETWORKS[name], augment_labels=9))
    network = started(init, recipe_of(NETWORKS[name]))
    x, c_noise = inputs()
    expected = init.network(x, c_noise, augment=torch.zeros(6, 9))
    assert torch.equal(network(x, c_noise), expected)
    assert torch.equal(init.network(x, c_noise), expected)
    assert not any(key.startswith("map_augment") for key in network.state_dict())


@settings(max_examples=10)
@given(labels=st.integers(0, 12), theirs=st.integers(0, 12), ours=st.integers(0, 12), dropout=st.sampled_from([0, 4]))
def test_any_widths_of_what_is_told(labels: int, theirs: int, ours: int, dropout: int) -> None:
    """Labels from nothing, augmentation labels of any two widths: without augmentation the function stays."""
    init = make(dataclasses.replace(UNET, augment_labels=theirs))
    config = dataclasses.replace(UNET, labels=labels, augment_labels=ours, dropout_resolution=dropout)
    network = started(init, recipe_of(config))
    x, c_noise = inputs(2)
    told = {"label": torch.zeros(2, dtype=torch.int64)} if labels else {}
    assert torch.equal(network(x, c_noise, **told), init.network(x, c_noise))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_precision(dtype: torch.dtype) -> None:
    init = make().to(dtype)
    network = started(init, recipe_of(UNET))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    for name, value in init.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value.float()), name


def test_every_preset_takes_a_diffusion_model(tools, tmp_path: Path, monkeypatch) -> None:
    """Before the first step the function is the denoiser's network under the recipe's own preconditioning, bit for bit."""
    init = make(dataclasses.replace(UNET, augment_labels=9))
    starts: list[dict[str, Tensor]] = []
    step = Engine.step

    def first(self: Engine) -> None:
        if self.images_seen == 0:
            starts.append({k: v.clone() for k, v in self.network.state_dict().items()})
            for state in (self.target.state_dict() if self.target else {}, *(a.state_dict() for a in self.averages.values())):
                assert all(torch.equal(value, starts[-1][name]) for name, value in state.items())
        step(self)

    monkeypatch.setattr(Engine, "step", first)
    expected = {k: v for k, v in init.network.state_dict().items() if not k.startswith("map_augment")}
    for preset in ("ict", "ct", "ect", "diffusion", "cd", "progressive"):
        distils = preset in ("cd", "progressive")
        changes: dict[str, Any] = {"teacher": init} if distils else {"init": init}
        changes |= {"curriculum": "fixed"} if preset == "ict" else {"teacher_steps": 2} if preset == "progressive" else {}
        recipe = presets.PRESETS[preset](images=16, batch=16, **changes)
        run = tools.train(tmp_path / preset, recipe, evaluate_images=2)
        tools.assert_same_tensors(starts[-1], expected)
        saved = RunFolder(run.folder).read_recipe()
        assert (saved.network, saved.sigma_data) == (UNET, 0.75)  # network="auto" and "measured" are the model's
        assert saved.init == model_identity(init)
    assert len(starts) == 6


def test_auto_takes_over_the_network_and_adds_what_the_recipe_needs() -> None:
    init = make(NCSN, preconditioning=Preconditioning("edm", 0.6, 0.0))
    resolved = resolve(presets.ict(6400, 16, conditional=True, augment=0.1), digits(), init)
    assert resolved.network == dataclasses.replace(NCSN, labels=10, augment_labels=AUGMENT_LABELS)
    assert resolved.sigma_data == 0.6
    alone = resolve(presets.ict(6400, 16), digits(), None)
    assert alone.sigma_data == round(digits().statistics().std, 4) != 0.6
    assert alone.network != NCSN


# ---- names and files


def test_a_recipe_file_holds_names_that_open(tools, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "teacher")
    recipe = presets.cd(32, 16, teacher=tmp_path / "teacher")
    run = tools.train(tmp_path / "run", recipe, evaluate_images=2)
    values = json.loads((run.folder / "recipe.json").read_text())
    assert values["teacher"] == values["init"] == str(tmp_path / "teacher")
    again = tools.train(tmp_path / "again", Recipe.from_dict(values), evaluate_images=2)
    assert torch.equal(again.model.sample(2), run.model.sample(2))
    assert Recipe.from_dict(values) == RunFolder(again.folder).read_recipe()
    # The same model as an object is the same run but for its name.
    given = tools.train(tmp_path / "given", dataclasses.replace(recipe, teacher=make(), init=make()), evaluate_images=2)  # type: ignore[arg-type]
    assert torch.equal(given.model.sample(2), run.model.sample(2))
    assert RunFolder(given.folder).read_recipe().teacher == model_identity(make())
    with pytest.raises(InputError, match="belongs to another recipe; it differs in init: .*; teacher: "):
        tools.train(tmp_path / "given", recipe)


def test_a_teacher_may_differ_from_the_start(tools, tmp_path: Path) -> None:
    teacher, init = make(), make()
    with torch.no_grad():
        next(init.network.parameters()).add_(0.1)
    run = tools.train(tmp_path / "run", presets.cd(16, 16, teacher=teacher, init=init))
    saved = RunFolder(run.folder).read_recipe()
    assert saved.teacher == model_identity(teacher)
    assert saved.init == model_identity(init)
    assert saved.teacher != saved.init


def test_the_identity_of_a_model_is_its_name_and_weights() -> None:
    one, other = make(), make()
    assert model_identity(one) == model_identity(other)
    assert model_identity(one).startswith("model, sha256 ")
    other.card["name"] = "mine"
    assert model_identity(other).startswith("mine, sha256 ")
    assert model_identity(other).split()[-1] == model_identity(one).split()[-1]
    with torch.no_grad():
        next(other.network.parameters()).view(-1)[0] += 1e-3
    assert model_identity(other).split()[-1] != model_identity(one).split()[-1]


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))


def test_a_single_number_has_an_identity() -> None:
    model = ConsistencyModel(ModelConfig(UNET, Preconditioning("edm", 0.5, 0.0)), Single())
    assert model_identity(model).startswith("model, sha256 ")


# ---- what is refused


DEEPER = dataclasses.replace(UNET, blocks=2, channels=12)


@pytest.mark.parametrize(
    ("init", "changes", "text"),
    [
        (
            make(),
            {"network": DEEPER},
            r"init has another network \(channels: 8 there, 12 here; blocks: 1 there, 2 here\): give the",
        ),
        (make(), {"network": NCSN}, r"another network \(.*embedding: positional there, fourier here"),
        (make(ADM), {"network": UNET}, r"another network \(architecture: adm there, unet here"),
        (make(), {"network": "small"}, "init has another network .* or network='auto'"),
        (
            make(dataclasses.replace(UNET, labels=10)),
            {},
            r"another network \(labels: 10 there, 0 here\): its labels cannot be left out, give the recipe conditional=True",
        ),
        (make(dataclasses.replace(UNET, labels=4)), {"conditional": True}, r"another network \(labels: 4 there, 10 here\)"),
        (make(), {"sigma_data": 0.5}, "init was trained with sigma_data 0.75, the recipe has 0.5: leave sigma_data='measured'"),
        (make(dataclasses.replace(UNET, size=16)), {}, "init is a model for 1x16x16 images, the data have 1x8x8"),
        (make(dataclasses.replace(UNET, image_channels=3)), {}, "init is a model for 3x8x8 images, the data have 1x8x8"),
        (
            make(
                dataclasses.replace(UNET, labels=10, guidance=True),
                kind="consistency",
                guidance=Guidance("embedded", (1.0, 2.0)),
            ),
            {"conditional": True},
            r"another network \(guidance: True there, False here\)",
        ),
    ],
)
def test_models_that_do_not_fit(tools, tmp_path: Path, init: ConsistencyModel, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        tools.train(tmp_path / "run", presets.ict(6400, 16, init=init, **changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_labels_where_the_data_have_none(tools, tmp_path: Path) -> None:
    init = make(dataclasses.replace(UNET, labels=10))
    with pytest.raises(InputError, match="label"):
        tools.train(tmp_path / "run", presets.ict(6400, 16, init=init, conditional=True), digits().without_labels())  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_gallery_model_is_a_start(tools, tmp_path: Path) -> None:
    """Also a consistency model can be continued: on other data, with another method."""
    model = atonce.load("digits")
    run = tools.train(tmp_path / "run", presets.ect(16, 16, init="digits"))
    saved = RunFolder(run.folder).read_recipe()
    assert saved.init == "digits"
    assert saved.network == model.config.network
    assert saved.sigma_data == model.sigma_data


# ---- a student and its teacher


def random_start(recipe: Recipe) -> dict[str, Tensor]:
    return build(recipe.network, recipe.seed).state_dict()  # type: ignore[arg-type]


def first_weights(tools: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: Recipe, **options: Any) -> tuple[Any, Any]:
    """The weights before the first step, and the recipe that the run keeps."""
    starts: list[dict[str, Tensor]] = []
    step = Engine.step

    def first(self: Engine) -> None:
        starts.append({k: v.clone() for k, v in self.network.state_dict().items()})
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", first)
        tools.train(folder, recipe, evaluate_images=2, **options)
    return starts[0], RunFolder(folder).read_recipe()


def test_a_student_starts_from_its_teacher_however_the_recipe_was_made(tools, tmp_path: Path, monkeypatch) -> None:
    teacher, other = make(), make()
    with torch.no_grad():
        next(other.network.parameters()).add_(0.1)
    teacher.save_pretrained(tmp_path / "teacher")
    short = presets.cd(16, 16, network=UNET, sigma_data=0.75)
    assert short.init is None
    named = presets.cd(16, 16, teacher=str(tmp_path / "teacher"), network=UNET, sigma_data=0.75)
    written = Recipe.from_dict(json.loads(json.dumps(named.as_dict())))  # init and teacher are two equal strings now
    assert written.init == written.teacher
    assert written.init is not written.teacher
    ways = {
        "replaced": (dataclasses.replace(short, teacher=other), {}),
        "passed": (short, {"teacher": other}),
        "renamed": (written, {"teacher": other}),
        "path": (dataclasses.replace(written, init=tmp_path / "teacher"), {"teacher": other}),
    }
    for name, (recipe, options) in ways.items():
        start, saved = first_weights(tools, monkeypatch, tmp_path / name, recipe, **options)
        tools.assert_same_tensors(start, dict(other.network.state_dict()))
        assert saved.init == saved.teacher == model_identity(other), name
    kept, saved = first_weights(tools, monkeypatch, tmp_path / "kept", dataclasses.replace(short, init=teacher), teacher=other)
    tools.assert_same_tensors(kept, dict(teacher.network.state_dict()))  # an init of its own stays
    assert (saved.init, saved.teacher) == (model_identity(teacher), model_identity(other))


def test_random_weights_are_asked_for_by_name(tools, tmp_path: Path, monkeypatch) -> None:
    recipe = presets.cd(16, 16, teacher=make(), network=UNET, sigma_data=0.75, init="random")
    start, saved = first_weights(tools, monkeypatch, tmp_path / "run", recipe)
    tools.assert_same_tensors(start, dict(random_start(recipe)))
    assert saved.init == "random"
    alone, _ = first_weights(tools, monkeypatch, tmp_path / "ct", presets.ct(16, 16, network=UNET, init="random"))
    tools.assert_same_tensors(alone, dict(random_start(recipe)))
    gentle = presets.ict(6400, 16, network="ncsnpp", init="random").resolve(32, 3, 0, 0.5).network
    assert gentle == presets.ict(6400, 16, network="ncsnpp").resolve(32, 3, 0, 0.5).network


# ---- going on to something else is allowed, and said

LETTERS = tuple("abcdefghij")


def noted(tools: Any, folder: Path, **changes: Any) -> tuple[list[str], str | None]:
    run = tools.train(folder, presets.ect(32, 16, **changes), evaluate_images=2, log_every=16)
    log = tools.log_of(folder)
    assert all("notes" not in line for line in log[1:])  # once
    assert atonce.load(folder).card.get("transfer") == run.model.card.get("transfer")
    return log[0].get("notes", []), run.model.card.get("transfer")


def test_other_classes_and_noise_levels_are_in_the_log_and_on_the_card(tools, tmp_path: Path) -> None:
    lettered = make(dataclasses.replace(UNET, labels=10), labels=LETTERS, sigma_min=0.01, sigma_max=20.0)
    notes, card = noted(tools, tmp_path / "run", init=lettered, conditional=True)
    assert notes == [
        "the classes of init are a, b, c, d, ... (10), here they are 0, 1, 2, 3, ... (10): each starts as the one in its place",
        "init has learnt noise levels from 0.01 to 20, here they are 0.002 to 80: those outside start untrained",
    ]
    assert card == "; ".join(notes)
    assert f"| transfer | {card} |" in (tmp_path / "run" / "model" / "README.md").read_text()
    tools.train(tmp_path / "run", presets.ect(32, 16, init=lettered, conditional=True))  # a finished run says nothing more
    assert sum("notes" in line for line in tools.log_of(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    "init",
    [
        make(dataclasses.replace(UNET, labels=10), labels=tuple(map(str, range(10)))),
        make(dataclasses.replace(UNET, labels=10)),  # classes that nobody has named
        make(),
        make(sigma_min=0.001, sigma_max=100.0),
    ],
    ids=["same", "unnamed", "unconditional", "wider"],
)
def test_nothing_is_said_where_there_is_nothing_to_say(tools, tmp_path: Path, init: ConsistencyModel) -> None:
    assert noted(tools, tmp_path / "run", init=init, conditional=True) == ([], None)


def test_a_killed_run_says_it_once_too(tools, tmp_path: Path, monkeypatch) -> None:
    recipe, options = presets.ect(64, 16, init=make(sigma_max=20.0), dropout=0.0), {"log_every": 32, "evaluate_images": 2}
    tools.train(tmp_path / "whole", recipe, **options)
    step = Engine.step

    def die(self: Engine) -> None:
        if self.images_seen == 16:  # the note is in the checkpoint, and not in the log yet
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", die)
        with pytest.raises(KeyboardInterrupt):
            tools.train(tmp_path / "run", recipe, checkpoint_seconds=0, **options)
    tools.train(tmp_path / "run", recipe, **options)
    tools.assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [len(line.get("notes", [])) for line in tools.log_of(tmp_path / "run")][:2] == [1, 0]
