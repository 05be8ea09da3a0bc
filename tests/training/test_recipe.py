"""Recipes: every field is checked by name, and a recipe survives being written down."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atonce
from atonce.core.errors import InputError
from atonce.model_files import model_identity
from atonce.networks.unet import UNetConfig, ncsnpp
from atonce.noise.curricula import n_ict
from atonce.training.limits import RANGES as LIMITS
from atonce.training.presets import PRESETS, cd, ct, diffusion, digits, ect, ict
from atonce.training.recipe import Recipe

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
RANGES = {name: (low, high) for name, low, high, _ in LIMITS}
OPTIONAL = {"huber_c", "r_mean"}
WORDS = {"sigma_data", "mu"}
INTEGERS = {f.name for f in dataclasses.fields(Recipe) if f.type == "int"}
LITERALS = (
    *("preconditioning", "clock", "pairs", "path", "target", "distance", "weight", "curriculum", "optimizer"),
    *("tangent_norm", "derivative", "direction", "imm_a"),
)


def test_every_number_has_a_range() -> None:
    numbers = {f.name for f in dataclasses.fields(Recipe) if f.type in ("int", "float") or f.name in OPTIONAL | WORDS}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_out_of_range(name: str) -> None:
    low, high = RANGES[name]
    below = low - 1 if name in INTEGERS else low - 1e-9 - abs(low) * 1e-9
    above = high + 1 if name in INTEGERS else high * (1 + 1e-6) + 1e-9
    for value in (below, above, math.nan, -math.inf, math.inf, "seven", True, [1], {}):
        with pytest.raises(InputError, match=rf"recipe field {name} is ") as caught:
            Recipe(**{name: value})
        assert "\n" not in str(caught.value)
    if name not in OPTIONAL:
        with pytest.raises(InputError, match=rf"recipe field {name} is None"):
            Recipe(**{name: None})


@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_whole_numbers_are_whole(name: str) -> None:
    low, high = RANGES[name]
    with pytest.raises(InputError, match=rf"recipe field {name} is .*a whole number"):
        Recipe(**{name: (max(low, 1) + min(high, 100)) / 2 + 0.25})


@pytest.mark.parametrize("name", LITERALS)
def test_choices(name: str) -> None:
    for value in ("nonsense", None, 3, ["ict"]):
        with pytest.raises(InputError, match=rf"recipe field {name} is .*must be one of "):
            Recipe(**{name: value})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"images": 100, "batch": 128}, "images is 100, must be at least one batch"),
        ({"sigma_min": 1.0, "sigma_max": 1.0}, "sigma_max is 1.0, must be above sigma_min"),
        ({"s0": 20, "s1": 10}, "s1 is 10, must be at least s0"),
        ({"ema": ()}, "ema is "),
        ({"ema": (1.0,)}, "ema is "),
        ({"ema": ("a",)}, "ema is "),
        ({"ema": 0.999}, "ema is 0.999, must be a tuple"),
        ({"ema": (0.9, 0.9)}, "each average may stand once"),
        ({"ema": (0.99993001, 0.99993002)}, "each average may stand once, and they must differ"),
        ({"network": "resnet"}, "network is 'resnet', must be one of auto"),
        ({"network": 3}, "network is 3"),
        ({"conditional": 1}, "conditional is 1, must be True or False"),
        ({"flip": "yes"}, "flip is 'yes'"),
        ({"label_dropout": 0.1}, "label_dropout needs conditional"),
        ({"pairs": "denoising"}, "belong together"),
        ({"target": "data"}, "belong together"),
        ({"path": "data"}, "belong together"),
        ({"sigma_data": "unknown"}, "sigma_data is 'unknown'"),
        ({"mu": "ct"}, "mu is 'ct'"),
        ({"pairs": "ect", "ect_q": 256.0, "ect_stages": 8}, "ect_stages is 8: .*at most 2 stages"),
        ({"images": 4, "batch": 1}, "shorter than its 8 stages"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        Recipe(**fields)
    assert "\n" not in str(caught.value)


def test_wrong_presets_are_refused_by_the_recipe() -> None:
    with pytest.raises(InputError, match="recipe field lr is -1"):
        ict(lr=-1)
    with pytest.raises(TypeError, match="learning_rate"):
        ict(learning_rate=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    recipe = PRESETS[name](seed=7)
    back = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert back == recipe
    assert back.digest() == recipe.digest()
    assert recipe.method == name or name == "digits"
    resolved = recipe.resolve(32, 3, 10, 0.4731234)
    assert Recipe.from_dict(json.loads(json.dumps(resolved.as_dict()))) == resolved
    assert resolved.digest() != recipe.digest()
    assert resolved.sigma_data == 0.4731


@given(
    batch=st.integers(1, 4096),
    lr=st.floats(1e-6, 1),
    seed=st.integers(-(2**62), 2**62),
    sigma=st.one_of(st.just("measured"), st.floats(0.1, 2)),
    huber=st.one_of(st.none(), st.floats(0, 1)),
    ema=st.lists(st.sampled_from([0.9, 0.99, 0.999]), min_size=1, unique=True),
    network=st.one_of(st.just("tiny"), st.just(NETWORK)),
)
def test_any_recipe_survives_json(
    batch: int, lr: float, seed: int, sigma: Any, huber: float | None, ema: list[float], network: Any
) -> None:
    recipe = Recipe(batch=batch, lr=lr, seed=seed, sigma_data=sigma, huber_c=huber, ema=tuple(ema), network=network)
    back = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert back == recipe
    assert back.digest() == recipe.digest()
    assert not recipe.differences(back)


def test_the_digest_is_stable() -> None:
    """Published numbers quote it, so it must not change by itself: not over processes, not with the order of fields."""
    recipe = ict()
    assert recipe.digest() == ict().digest()
    shuffled = Recipe.from_dict(dict(sorted(recipe.as_dict().items(), reverse=True)))
    assert shuffled.digest() == recipe.digest()
    digests = {ict(seed=1).digest(), ict(lr=2e-4).digest(), ict(network=NETWORK).digest(), recipe.digest()}
    assert len(digests) == 4
    changed = dataclasses.replace(NETWORK, blocks=2)
    assert ict(network=changed).digest() != ict(network=NETWORK).digest()


def test_differences_name_what_differs() -> None:
    assert ict().differences(ict()) == []
    assert ict().differences(ict(lr=1e-3, seed=4)) == ["lr: 0.0001 -> 0.001", "seed: 0 -> 4"]
    other = ict(network=dataclasses.replace(NETWORK, blocks=3))
    assert ict(network=NETWORK).differences(other) == ["network.blocks: 1 -> 3"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"learning_rate": 1}, "recipe fields learning_rate are not known; known: .*lr"),
        ({"network": {"size": 8, "depth": 3}}, "network fields depth are not known"),
        ({"network": {"size": 3}}, "network size is 3"),
        ({"ema": 5}, "ema is 5"),
        ({"batch": "many"}, "batch is 'many'"),
    ],
)
def test_from_dict_refuses(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Recipe.from_dict(values)


def test_a_recipe_that_holds_a_model_is_printed_hashed_and_saved() -> None:
    model = atonce.load("digits")
    name = model_identity(model)
    recipe = cd(teacher=model)
    values = json.loads(json.dumps(recipe.as_dict()))
    assert (values["init"], values["teacher"]) == (name, name)
    assert recipe.digest() == cd(teacher=name).digest() != cd(teacher="digits").digest()
    assert ict(init=model).digest() == ict(init=name).digest()
    assert repr(recipe) == repr(cd(teacher=name))
    assert len(repr(recipe)) < 1500
    assert "\n" not in repr(recipe)
    assert f"teacher={name!r})" in repr(recipe)
    assert json.loads(json.dumps(ict(init=Path("runs/a")).as_dict()))["init"] == "runs/a"
    assert recipe.differences(cd(teacher=name)) == []


@pytest.mark.parametrize("field", ["init", "teacher"])
@pytest.mark.parametrize("value", [3, 0.5, True, ["digits"], b"digits"])
def test_what_is_no_model(field: str, value: Any) -> None:
    with pytest.raises(
        InputError, match=rf"recipe field {field} is .*, must be a model, its name, a folder or a hub id"
    ) as caught:
        Recipe(**{field: value})
    assert "\n" not in str(caught.value)


def test_lists_are_as_good_as_tuples() -> None:
    assert ict(ema=[0.9, "power-0.1"]) == ict(ema=(0.9, "power-0.1"))
    assert hash(ict(ema=[0.9])) == hash(ict(ema=(0.9,)))
    guided = cd(teacher="t", conditional=True, guidance=[1.0, 4.0])
    assert guided == cd(teacher="t", conditional=True, guidance=(1.0, 4.0))
    with pytest.raises(InputError, match=r"guidance is \(4.0, 1.0\), must be a scale"):
        cd(teacher="t", conditional=True, guidance=[4.0, 1.0])
    with pytest.raises(InputError, match="ema is "):
        ict(ema=[])


def test_steps_are_whole_batches() -> None:
    assert Recipe(images=1000, batch=128).steps == 7
    assert Recipe(images=128, batch=128, s1=10).steps == 1


class TestResolve:
    def test_names_become_networks(self) -> None:
        network = ict(network="auto", conditional=True).resolve(8, 1, 10, 0.75).network
        assert isinstance(network, UNetConfig)
        assert (network.size, network.image_channels, network.labels) == (8, 1, 10)
        unconditional = ict(network="auto").resolve(8, 1, 10, 0.75).network
        assert isinstance(unconditional, UNetConfig)
        assert unconditional.labels == 0

    def test_given_numbers_stay(self) -> None:
        assert ict(sigma_data=0.5).resolve(8, 1, 10, 0.75).sigma_data == 0.5
        assert ict(network=NETWORK).resolve(8, 1, 10, 0.75).network == NETWORK

    def test_a_network_of_another_shape(self) -> None:
        for shape in ((16, 1, 0), (8, 3, 0)):
            with pytest.raises(InputError, match="the network is for 1x8x8 images and 0 classes, the data have"):
                ict(network=NETWORK).resolve(*shape, 0.5)
        with pytest.raises(InputError, match="and 10$"):
            ict(network=NETWORK, conditional=True).resolve(8, 1, 10, 0.5)

    def test_images_too_small_for_the_network(self) -> None:
        with pytest.raises(InputError, match="30x30 do not fit 3 levels"):
            ict(network="ddpmpp").resolve(30, 3, 0, 0.5)

    def test_consistency_training_gets_the_gentle_noise_embedding(self) -> None:
        """Fourier features at scale 16, as published for NCSN++, make training from data diverge; iCT uses 0.02."""
        for preset, scale in ((ict, 0.02), (ct, 0.02), (ect, 0.02), (diffusion, 16.0)):
            for name in ("ncsnpp", "ncsnpp-deep"):
                network = preset(network=name).resolve(32, 3, 0, 0.5).network
                assert isinstance(network, UNetConfig)
                assert network.fourier_scale == scale, preset
        started = ict(network="ncsnpp", init="teacher").resolve(32, 3, 0, 0.5).network
        assert started == ncsnpp(32, 3)  # weights that were trained at scale 16 stay at it


class TestPresets:
    def test_ict_is_published(self) -> None:
        r = ict()
        assert (r.pairs, r.path, r.target, r.distance, r.weight) == (
            "lognormal-intervals",
            "same-noise",
            "student",
            "pseudo-huber",
            "inverse-delta",
        )
        assert (r.s0, r.s1, r.P_mean, r.P_std, r.huber_c) == (10, 1280, -1.1, 2.0, None)
        assert (r.optimizer, r.lr, r.batch, r.images, r.dropout, r.ema) == ("radam", 1e-4, 1024, 409_600_000, 0.3, (0.99993,))
        assert (r.sigma_min, r.sigma_max, r.rho, r.preconditioning) == (0.002, 80.0, 7.0, "boundary")
        assert [n_ict(k * r.images // 8, r.images, r.s0, r.s1) for k in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]

    def test_ct_is_published(self) -> None:
        r = ct()
        assert (r.pairs, r.path, r.target, r.weight) == ("karras", "same-noise", "ema", "one")
        assert r.init is None  # from scratch, as in the paper; the published launch line starts from a teacher
        assert (r.curriculum, r.s0, r.s1, r.mu, r.mu0, r.lr, r.batch) == ("ct", 2, 150, "ct-code", 0.9, 4e-4, 512)

    def test_ect_is_published(self) -> None:
        r = ect()
        assert (r.pairs, r.target, r.weight, r.distance, r.huber_c) == ("ect", "student", "inverse-delta", "pseudo-huber", 0.0)
        assert (r.preconditioning, r.ect_q, r.ect_k, r.ect_b, r.ect_stages) == ("edm", 2.0, 8.0, 1.0, 8)
        assert (r.lr, r.batch, r.images, r.dropout, r.ema) == (1e-4, 128, 25_600_000, 0.2, (0.9999,))

    def test_diffusion_is_published(self) -> None:
        r = diffusion()
        assert (r.pairs, r.path, r.target, r.distance, r.weight) == ("denoising", "data", "data", "l2", "edm")
        assert (r.P_mean, r.P_std, r.optimizer, r.lr, r.batch, r.dropout) == (-1.2, 1.2, "adam", 1e-3, 512, 0.13)
        assert (r.lr_rampup, r.ema_rampup) == (10_000_000, 0.05)
        assert r.ema == ("half-life-500000",)

    def test_digits_is_an_ict(self) -> None:
        assert (digits().method, digits().target, digits().network) == ("ict", "student", "tiny")

    @pytest.mark.parametrize("name", PRESETS)
    def test_changes_win(self, name: str) -> None:
        r = PRESETS[name](images=10_240, batch=16, seed=3, lr=0.5, ema=(0.5,))
        assert (r.images, r.batch, r.seed, r.lr, r.ema) == (10_240, 16, 3, 0.5, (0.5,))
