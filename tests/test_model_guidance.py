"""Guidance of a model: free, fixed or embedded; what each computes, counts, refuses, says and keeps."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atonce.core.errors import InputError, ModelFileError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig, build
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.product import model_config, model_facts
from atonce.training.start import starting_weights

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=3)
TOLD = dataclasses.replace(NETWORK, guidance=True)
SMALL_ADM = ADMConfig(8, 1, channels=32, channel_mult=(1,), blocks=1, attention=(), head_channels=32, labels=3)
SHAPE = (1, 8, 8)
EDM = Preconditioning("edm", 0.5, 0.0)
BOUNDARY = Preconditioning("boundary", 0.5, 0.002)


def trained(config: NetworkConfig, seed: int = 3) -> nn.Module:
    """A network whose output is of ordinary size and depends on everything that it is told."""
    network = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return network


def make(guidance: Guidance | None, network: NetworkConfig = NETWORK, **changes: Any) -> ConsistencyModel:
    changes.setdefault("kind", "consistency" if guidance and guidance.form != "free" else "denoiser")
    changes.setdefault("preconditioning", EDM if changes["kind"] == "denoiser" else BOUNDARY)
    return ConsistencyModel(ModelConfig(network, guidance=guidance, **changes), trained(network))


FREE = make(Guidance("free"))
PLAIN = make(None)
FIXED = make(Guidance("fixed", (2.0,)))
EMBEDDED = make(Guidance("embedded", (1.5, 4.0)), TOLD)
FROM_ZERO = make(Guidance("embedded", (0.0, 3.0)), TOLD)


def unit(n: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def calls_of(model: ConsistencyModel, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """What the network is told by ``model.sample`` or by the call."""
    seen: list[dict[str, Any]] = []
    hook = model.network.register_forward_pre_hook(lambda _, args, told: seen.append(told), with_kwargs=True)
    try:
        (model.sample if isinstance(arguments[0], int) else model)(*arguments, **options)
    finally:
        hook.remove()
    return seen


# ---- free: two calls of a denoiser


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 7.5])
def test_the_guided_call_is_the_formula(w: float) -> None:
    x, label = 3.0 * unit(4), torch.tensor([0, 1, 2, 1])
    with_class, without = FREE(x, 3.0, label), FREE(x, 3.0)
    assert float((with_class - without).abs().mean()) > 0.01
    torch.testing.assert_close(FREE(x, 3.0, label, guidance=w), without + w * (with_class - without), rtol=1e-4, atol=1e-4)
    one = FREE(x, torch.full((4,), 3.0), 2, guidance=torch.tensor(w))
    torch.testing.assert_close(one, without + w * (FREE(x, 3.0, 2) - without), rtol=1e-4, atol=1e-4)


def test_a_scale_for_each_image() -> None:
    x, label, w = 3.0 * unit(3), torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0, 3.0])
    sigma = torch.tensor([0.5, 3.0, 30.0])
    together = FREE(x, sigma, label, guidance=w)
    for i in range(3):
        alone = FREE(x[i : i + 1], float(sigma[i]), label[i : i + 1], guidance=float(w[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (2, 3), (5, 9)])
@pytest.mark.parametrize("w", [None, 1.0, 2.0])
def test_guidance_costs_two_calls_for_each_evaluation(steps: int, evaluations: int, w: float | None) -> None:
    seen: list[dict[str, Any]] = []
    FREE.sample(3, steps, guidance=w, callback=seen.append)
    assert seen[-1]["calls"] == (evaluations if w is None else 2 * evaluations)
    told = calls_of(FREE, 3, steps, guidance=w)
    assert sum(len(call["label"]) for call in told) == 3 * seen[-1]["calls"]  # what is counted is what is computed


def test_samples_are_those_of_the_guided_ode() -> None:
    """The sampler's ODE has D_w where it had D, with the classes that were drawn."""
    z = normal(4, torch.arange(3), SHAPE, Stream.SAMPLE, 0)
    label = torch.tensor([2, 0, 1])
    expected = FREE(80.0 * z, 80.0, label, guidance=3.0).clamp(-1, 1)
    torch.testing.assert_close(FREE.sample(3, 1, 4, labels=label, guidance=3.0), expected, rtol=0, atol=1e-4)
    assert torch.equal(FREE.sample(3, 3, 4), PLAIN.sample(3, 3, 4))
    plain, same = FREE.sample(3, 3, 4), FREE.sample(3, 3, 4, guidance=1.0)
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-3)
    assert float((FREE.sample(3, 3, 4, guidance=3.0) - plain).abs().max()) > 0.01


# ---- fixed: the scale is in the weights


def test_a_fixed_scale_may_be_named_but_not_changed() -> None:
    x = 3.0 * unit(2)
    assert torch.equal(FIXED(x, 3.0, 1, guidance=2.0), FIXED(x, 3.0, 1))
    assert torch.equal(FIXED(x, 3.0, 1, guidance=torch.tensor([2.0, 2.0])), FIXED(x, 3.0, 1))
    assert torch.equal(FIXED.sample(2, 2, guidance=2.0), FIXED.sample(2, 2))
    seen: list[dict[str, Any]] = []
    FIXED.sample(2, 2, guidance=2.0, callback=seen.append)
    assert seen[-1]["calls"] == 2


def test_a_fixed_scale_that_single_precision_cannot_hold() -> None:
    model = make(Guidance("fixed", (1.1,)))
    assert torch.equal(model.sample(1, guidance=1.1), model.sample(1))


# ---- embedded: the network is told the scale


def test_the_network_gets_the_scale() -> None:
    x, label = 3.0 * unit(3), torch.tensor([0, 1, 2])
    w = torch.tensor([1.5, 2.25, 4.0])
    (told,) = calls_of(EMBEDDED, x, 3.0, label, guidance=w)
    assert torch.equal(told["guidance"], w)
    (told,) = calls_of(EMBEDDED, x, 3.0, label, guidance=2.5)
    assert told["guidance"].tolist() == [2.5] * 3
    for call in calls_of(EMBEDDED, 3, 2, guidance=2.5):
        assert call["guidance"].tolist() == [2.5] * 3
        assert len(call["label"]) == 3
    expected = BOUNDARY(EMBEDDED.network, x, torch.full((3,), 3.0), label=label, guidance=w)
    torch.testing.assert_close(EMBEDDED(x, 3.0, label, guidance=w), expected)
    assert float((EMBEDDED(x, 3.0, label, guidance=1.5) - EMBEDDED(x, 3.0, label, guidance=4.0)).abs().max()) > 0.01


def test_without_a_scale_the_network_is_told_the_one_nearest_to_none() -> None:
    x = 3.0 * unit(2)
    assert torch.equal(EMBEDDED(x, 3.0, 1), EMBEDDED(x, 3.0, 1, guidance=1.5))
    assert torch.equal(FROM_ZERO(x, 3.0, 1), FROM_ZERO(x, 3.0, 1, guidance=1.0))
    assert torch.equal(FROM_ZERO.sample(2), FROM_ZERO.sample(2, guidance=1.0))
    low = make(Guidance("embedded", (0.0, 0.5)), TOLD)
    assert torch.equal(low(x, 3.0, 1), low(x, 3.0, 1, guidance=0.5))
    FROM_ZERO(x, 3.0)  # nor does an image without a class need one


def test_it_costs_one_call() -> None:
    seen: list[dict[str, Any]] = []
    EMBEDDED.sample(3, 2, guidance=3.0, callback=seen.append)
    assert seen[-1]["calls"] == 2


@pytest.mark.parametrize("network", [NETWORK, SMALL_ADM], ids=["unet", "adm"])
def test_a_student_that_is_told_the_scale_starts_as_its_teacher(network: NetworkConfig) -> None:
    """The weights of the new input are zero, so at every scale the network is the teacher's: exactly."""
    teacher = make(Guidance("free"), network)
    recipe = presets.cd(
        6400, 64, network=dataclasses.replace(network, guidance=True), sigma_data=0.5, conditional=True, guidance=(1.0, 4.0)
    )
    student = build(recipe.network, 0)  # type: ignore[arg-type]
    student.load_state_dict(starting_weights(teacher, recipe))
    x, c_noise, label = unit(4), torch.linspace(-1.5, 1.0, 4), torch.tensor([0, 2, -1, 1])
    expected = teacher.network(x, c_noise, label=label)
    for w in (1.0, 2.7, 4.0):
        assert torch.equal(student(x, c_noise, label=label, guidance=torch.full((4,), w)), expected)
    # And it can leave: the new weights have a gradient.
    student(x, c_noise, label=label, guidance=torch.full((4,), 2.0)).square().sum().backward()
    gradients = {n: p.grad for n, p in student.named_parameters() if n.startswith("map_guidance.")}
    assert gradients
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients.values())


# ---- what is refused


@pytest.mark.parametrize(
    ("model", "label", "w", "text"),
    [
        (PLAIN, 1, 2.0, "guidance=2: this model was not trained with guidance; leave it out"),
        (FREE, None, 2.0, "guidance=2 needs a class for each image: give labels"),
        (FREE, torch.tensor([0, -1]), 2.0, "guidance=2 needs a class for each image: give labels"),
        (FREE, -1, 1.0, "guidance=1 needs a class for each image: give labels"),
        (FREE, 1, float("nan"), "guidance=nan must be one finite number"),
        (FREE, 1, torch.tensor([1.0, 2.0, 3.0]), "guidance must be one finite number, or one for each of 2 images"),
        (FREE, 1, torch.tensor([1.0, float("inf")]), "guidance must be one finite number"),
        (FIXED, 1, 3.0, "guidance=3: scale 2 was fixed when this model was distilled; leave it out"),
        (FIXED, None, 2.0, "guidance=2 needs a class"),
        (FIXED, 1, torch.tensor([2.0, 2.5]), "guidance: scale 2 was fixed"),
        (EMBEDDED, 1, 4.1, "guidance=4.1 is out of range: this model knows 1.5 to 4"),
        (EMBEDDED, 1, 1.0, "guidance=1 is out of range: this model knows 1.5 to 4"),
        (EMBEDDED, 1, torch.tensor([2.0, 5.0]), "guidance is out of range"),
        (EMBEDDED, None, 2.0, "guidance=2 needs a class"),
    ],
)
def test_scales_that_cannot_be_honoured(model: ConsistencyModel, label: Any, w: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        model(unit(2), 1.0, label, guidance=w)
    assert "\n" not in str(caught.value)
    if label is not None:  # samples draw their classes where none are given
        with pytest.raises(InputError, match=text):
            model.sample(2, labels=label, guidance=w)


def test_an_unconditional_model_has_no_guidance() -> None:
    model = make(None, dataclasses.replace(NETWORK, labels=0))
    for call in (lambda: model(unit(1), 1.0, guidance=2.0), lambda: model.sample(1, guidance=2.0)):
        with pytest.raises(InputError, match="guidance=2: this model was not trained with guidance"):
            call()


@pytest.mark.parametrize(
    ("guidance", "network", "text"),
    [
        (
            Guidance("free"),
            dataclasses.replace(NETWORK, labels=0),
            "guidance needs a class-conditional network, this one has no",
        ),
        (Guidance("fixed", (2.0,)), dataclasses.replace(NETWORK, labels=0), "needs a class-conditional network"),
        (Guidance("embedded", (1.0, 2.0)), NETWORK, "the network has guidance=False: they must agree"),
        (Guidance("free"), TOLD, "the network has guidance=True: they must agree"),
        (None, TOLD, "guidance is None, the network has guidance=True: they must agree"),
    ],
)
def test_configurations_that_do_not_fit(guidance: Guidance | None, network: UNetConfig, text: str) -> None:
    with pytest.raises(InputError, match=text):
        ModelConfig(network, EDM, kind="denoiser", guidance=guidance)


@pytest.mark.parametrize(
    ("form", "scales"),
    [("free", (1.0,)), ("fixed", ()), ("fixed", (1.0, 2.0)), ("embedded", (1.0,)), ("embedded", (3.0, 1.0)), ("loose", ())],
)
def test_forms_and_scales_that_do_not_fit(form: Any, scales: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=f"guidance is '{form}' with scales .*free has none, fixed one, embedded"):
        Guidance(form, scales)


# ---- what is kept and said


@pytest.mark.parametrize("model", [FREE, FIXED, EMBEDDED, PLAIN], ids=["free", "fixed", "embedded", "none"])
def test_it_is_kept_in_the_folder(tmp_path: Path, model: ConsistencyModel) -> None:
    model.save_pretrained(tmp_path / "model")
    back = ConsistencyModel.from_pretrained(tmp_path / "model")
    assert back.config == model.config
    w = None if model is PLAIN else 2.0
    assert torch.equal(back.sample(3, 2, guidance=w), model.sample(3, 2, guidance=w))
    twin = copy.deepcopy(back)
    assert torch.equal(twin.sample(3, 2, guidance=w), back.sample(3, 2, guidance=w))


@pytest.mark.parametrize(
    "damage", [{"form": "loose", "scales": []}, {"form": "fixed"}, "free", {"form": "fixed", "scales": "two"}, 3]
)
def test_a_damaged_folder_is_named(tmp_path: Path, damage: Any) -> None:
    FREE.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "guidance": damage}))
    with pytest.raises(ModelFileError, match="config.json is not a usable model configuration") as caught:
        ConsistencyModel.from_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value)


def _cd(**changes: Any) -> Any:
    network = TOLD if isinstance(changes["guidance"], tuple) else NETWORK
    return presets.cd(6400, 64, network=network, sigma_data=0.5, conditional=True, **changes)


@pytest.mark.parametrize(
    ("recipe", "guidance", "said"),
    [
        (_cd(guidance=2.5), Guidance("fixed", (2.5,)), "fixed in distillation, scale 2.5; 1 is no guidance"),
        (_cd(guidance=(1.0, 4.5)), Guidance("embedded", (1.0, 4.5)), "a condition of the network, from 1 to 4.5; 1 is no"),
        (_cd(guidance=None), None, None),
        (
            presets.diffusion(6400, 64, network=NETWORK, sigma_data=0.5, conditional=True, label_dropout=0.1),
            Guidance("free"),
            "any scale, at two network calls instead of one",
        ),
        (presets.diffusion(6400, 64, network=NETWORK, sigma_data=0.5, conditional=True), None, None),
        (
            presets.progressive(6400, 64, network=NETWORK, sigma_data=0.5, conditional=True, guidance=3.0, label_dropout=0.1),
            Guidance("fixed", (3.0,)),
            "fixed in distillation, scale 3",
        ),
    ],
)
def test_the_card_says_which_form_and_range(tmp_path: Path, recipe: Any, guidance: Guidance | None, said: str | None) -> None:
    config = model_config(recipe, Preconditioning("edm", 0.5, 0.0), ("a", "b", "c"))
    assert config.guidance == guidance
    model = ConsistencyModel(config, trained(config.network), card=model_facts(recipe))
    model.save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    if said is None:
        assert "| guidance |" not in text
    else:
        assert f"| guidance | {said}" in text


# ---- batches and seeds


@settings(max_examples=8)
@given(st.integers(1, 7), st.sampled_from([(FREE, 2), (EMBEDDED, 2), (FIXED, 1)]))
def test_the_batch_size_does_not_matter(batch: int, of: tuple[ConsistencyModel, int]) -> None:
    model, steps = of
    whole = model.sample(7, steps, 1, first=5, guidance=2.0, batch=7)
    torch.testing.assert_close(model.sample(7, steps, 1, first=5, guidance=2.0, batch=batch), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [FREE, EMBEDDED])
def test_a_scale_for_each_image_goes_with_its_image(model: ConsistencyModel) -> None:
    scales = torch.tensor([1.5, 2.0, 2.5, 3.0, 3.5])
    whole = model.sample(5, 2, 1, guidance=scales)  # type: ignore[arg-type]
    torch.testing.assert_close(model.sample(5, 2, 1, guidance=scales, batch=2), whole, rtol=0, atol=1e-5)  # type: ignore[arg-type]
    for i, w in enumerate(scales.tolist()):
        torch.testing.assert_close(model.sample(1, 2, 1, first=i, guidance=w), whole[i : i + 1], rtol=0, atol=1e-5)
    assert model.sample(0, 2, guidance=2.0).shape == (0, *SHAPE)
