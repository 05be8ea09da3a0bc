"""ConsistencyModel: the call, and what sampling promises about noise, batches, threads and bad input."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNet, UNetConfig
from atonce.preconditioning import Preconditioning

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
LABELLED = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=3)


def trained(config: UNetConfig, seed: int) -> UNet:
    """A network whose output is of ordinary size, as after training."""
    network = UNet(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return network


def make(network: UNetConfig = NETWORK, ema: bool = True, **changes: Any) -> ConsistencyModel:
    changes.setdefault("preconditioning", Preconditioning("boundary", 0.5, 0.002))
    averages = {"0.999": trained(network, 5).state_dict()} if ema else {}
    return ConsistencyModel(ModelConfig(network, **changes), trained(network, 3), averages)


MODEL = make()
CONDITIONAL = make(LABELLED, labels=("cat", "dog", "owl"))
SHAPE = (1, 8, 8)


def unit(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


# ---- what it says about itself


def test_attributes() -> None:
    model = CONDITIONAL
    assert (model.kind, model.shape, model.image_shape) == ("consistency", SHAPE, SHAPE)
    assert (model.sigma_min, model.sigma_max, model.sigma_data, model.sigma_end) == (0.002, 80.0, 0.5, 0.002)
    assert (model.clip, model.labels, model.ema_names) == ((-1.0, 1.0), ["cat", "dog", "owl"], ["0.999"])
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert (model.card, model.records) == ({}, [])
    assert MODEL.labels is None
    assert make(LABELLED).labels == ["0", "1", "2"]
    assert "kind=consistency, shape=(1, 8, 8), labels=3" in repr(model)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "gan"}, "kind 'gan' is not known"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"sigma_min": 80.0}, "sigma_min is 80.0"),
        ({"labels": ("a",)}, "1 label names are given, but the network has 0 classes"),
        ({"clip": (1.0, -1.0)}, "clip is "),
        ({"time_points": {2: (80.0,)}}, "time_points for 2 steps"),
        ({"time_points": {2: (1.0, 2.0)}}, "must descend"),
        ({"time_points": {2: (90.0, 2.0)}}, "at most 80"),
        ({"time_points": {2: (80.0, 0.002)}}, "time_points for 2 steps"),
    ],
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        make(ema=False, **changes)


# ---- the call


def test_the_call_is_the_preconditioned_network() -> None:
    x = 3.0 * unit(4)
    expected = MODEL.config.preconditioning(MODEL.network, x, torch.full((4,), 3.0))
    torch.testing.assert_close(MODEL(x, 3.0), expected)
    torch.testing.assert_close(MODEL(x, torch.tensor([3.0, 3.0, 3.0, 3.0])), expected)
    torch.testing.assert_close(MODEL(x, torch.tensor(3.0)), expected)
    levels = torch.tensor([0.1, 1.0, 10.0, 80.0])
    for i, level in enumerate(levels):
        torch.testing.assert_close(MODEL(x, levels)[i : i + 1], MODEL(x[i : i + 1], float(level)), rtol=1e-5, atol=1e-5)


def test_the_call_at_the_end_is_the_identity() -> None:
    x = unit(2)
    assert torch.equal(MODEL(x, 0.002), x)
    assert torch.equal(MODEL(x, torch.full((2,), 0.002)), x)
    edm = make(preconditioning=Preconditioning("edm", 0.5, 0.0))
    assert torch.equal(edm(x, 0.0), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_call_gives_back_the_type_it_got(dtype: torch.dtype) -> None:
    x = (2.0 * unit(2)).to(dtype)
    out = MODEL(x, 2.0)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), MODEL(x.float(), 2.0), rtol=1e-2, atol=1e-2)


def test_labels_of_the_call() -> None:
    x = unit(3)
    one = CONDITIONAL(x, 2.0, 1)
    torch.testing.assert_close(CONDITIONAL(x, 2.0, torch.tensor([1, 1, 1])), one)
    torch.testing.assert_close(CONDITIONAL(x, 2.0, torch.tensor([1, 2, 0]))[:1], one[:1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(CONDITIONAL(x, 2.0, 2), one)
    torch.testing.assert_close(CONDITIONAL(x, 2.0), CONDITIONAL(x, 2.0, -1))


def test_gradients_reach_the_input() -> None:
    """Editing and guidance differentiate through the call."""
    x = unit(1).requires_grad_()
    MODEL(x, 1.0).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.norm()) > 0


@pytest.mark.parametrize(
    ("model", "arguments", "options", "text"),
    [
        (MODEL, (unit(2), 1.0), {"to": 0.5}, "to=0.5 .* only flow maps"),
        (MODEL, (unit(2), 1.0), {"guidance": 2.0}, "guidance=2: "),
        (MODEL, (unit(2)[0], 1.0), {}, r"x has shape \(1, 8, 8\), this model takes \[B, 1, 8, 8\]"),
        (MODEL, (unit(2)[..., :4], 1.0), {}, r"x has shape \(2, 1, 8, 4\)"),
        (MODEL, (unit(3), torch.tensor([1.0, 2.0])), {}, "sigma has 2 values for 3 images"),
        (MODEL, (unit(2), 0.001), {}, "sigma is 0.001, this model knows 0.002 to 80"),
        (MODEL, (unit(2), 100.0), {}, "sigma is 100"),
        (MODEL, (unit(2), float("nan")), {}, "sigma is nan"),
        (MODEL, (unit(2), 1.0, 0), {}, "unconditional"),
        (CONDITIONAL, (unit(2), 1.0, 3), {}, "label 3 is out of range: this model has 3 classes, 0 to 2"),
        (CONDITIONAL, (unit(3), 1.0, torch.tensor([0, 1])), {}, "2 labels are given for 3 images"),
    ],
)
def test_calls_that_are_refused(
    model: ConsistencyModel, arguments: tuple[Any, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=text) as caught:
        model(*arguments, **options)
    assert "\n" not in str(caught.value)


# ---- sampling: the noise


def test_one_step_is_the_call_on_the_published_noise() -> None:
    z = normal(7, torch.arange(3, 8), SHAPE, Stream.SAMPLE, 0)
    expected = MODEL(80.0 * z, 80.0).clamp(-1, 1)
    assert torch.equal(MODEL.sample(5, seed=7, first=3), expected)


def test_two_steps_draw_the_noise_of_the_second_step() -> None:
    index = torch.arange(4)
    z, w = (normal(7, index, SHAPE, Stream.SAMPLE, step) for step in (0, 1))
    x = MODEL(80.0 * z, 80.0).clamp(-1, 1)
    expected = MODEL(x + (0.821**2 - 0.002**2) ** 0.5 * w, 0.821).clamp(-1, 1)
    assert torch.equal(MODEL.sample(4, 2, seed=7), expected)


def test_shards_fit_together() -> None:
    whole = MODEL.sample(16, 2, seed=4, batch=8)
    shards = torch.cat([MODEL.sample(8, 2, seed=4, first=first, batch=8) for first in (0, 8)])
    assert torch.equal(whole, shards)
    torch.testing.assert_close(MODEL.sample(16, 2, seed=4), whole, rtol=0, atol=1e-5)


@settings(max_examples=10)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 1000))
def test_the_batch_size_does_not_matter(batch: int, steps: int, first: int) -> None:
    for model in (MODEL, CONDITIONAL):
        whole = model.sample(7, steps, seed=1, first=first, batch=7)
        torch.testing.assert_close(model.sample(7, steps, seed=1, first=first, batch=batch), whole, rtol=0, atol=1e-5)


def test_one_seed_for_each_image() -> None:
    seeds = [5, 2**40, 5, -3]
    images = CONDITIONAL.sample(4, 2, seeds=seeds, batch=1)
    for i, seed in enumerate(seeds):
        assert torch.equal(images[i : i + 1], CONDITIONAL.sample(1, 2, seed=seed))
    assert torch.equal(images[0], images[2])
    assert torch.equal(CONDITIONAL.sample(4, 2, seeds=torch.tensor(seeds), batch=1), images)


def test_given_noise_replaces_the_first_draw_only() -> None:
    z = normal(9, torch.arange(4), SHAPE, Stream.SAMPLE, 0)
    assert torch.equal(MODEL.sample(4, 2, seed=9, noise=z), MODEL.sample(4, 2, seed=9))
    other = unit(4, seed=8)
    torch.testing.assert_close(MODEL.sample(4, seed=9, noise=other), MODEL(80.0 * other, 80.0).clamp(-1, 1))
    assert not torch.equal(MODEL.sample(4, 2, seed=9, noise=other), MODEL.sample(4, 2, seed=10, noise=other))
    assert torch.equal(MODEL.sample(4, seed=9, noise=other, batch=2), MODEL.sample(4, seed=1, noise=other, batch=2))


def test_seeds_and_indices_give_different_images() -> None:
    images = torch.cat([MODEL.sample(4, seed=0), MODEL.sample(4, seed=1), MODEL.sample(4, seed=0, first=4)]).flatten(1)
    assert float(torch.pdist(images).min()) > 0.1


def test_no_global_random_state_is_read_or_changed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is watched here
    random.seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore[union-attr] # noqa: NPY002
    first = CONDITIONAL.sample(3, 2, ema="0.999")
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[arg-type] # noqa: NPY002
    assert before[2] == random.getstate()
    torch.manual_seed(2)
    assert torch.equal(first, CONDITIONAL.sample(3, 2, ema="0.999"))


# ---- sampling: what comes out


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("model", [MODEL, CONDITIONAL], ids=["plain", "conditional"])
def test_shape_type_and_range(model: ConsistencyModel, n: int) -> None:
    x = model.sample(n, 2)
    assert (x.shape, x.dtype, x.device) == ((n, *SHAPE), torch.float32, model.device)
    assert not x.requires_grad
    assert n == 0 or float(x.abs().max()) <= 1.0


def test_without_a_range_nothing_is_clipped() -> None:
    free = make(clip=None)
    assert float(free.sample(8).abs().max()) > 1.0
    torch.testing.assert_close(free.sample(8).clamp(-1, 1), MODEL.sample(8))


def test_labels_choose_the_class() -> None:
    one = CONDITIONAL.sample(4, seed=1, labels=2)
    torch.testing.assert_close(one, CONDITIONAL.sample(4, seed=1, labels=[2, 2, 2, 2]))
    mixed = CONDITIONAL.sample(4, seed=1, labels=torch.tensor([2, 0, 1, -1]), batch=3)
    torch.testing.assert_close(mixed[:1], one[:1], rtol=0, atol=1e-5)
    assert not torch.allclose(mixed[1:], one[1:], atol=1e-3)


def test_labels_that_are_not_given_are_drawn_fairly_and_shard_alike() -> None:
    seen: list[Tensor] = []
    hook = CONDITIONAL.network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["label"]), with_kwargs=True)
    try:
        CONDITIONAL.sample(300, seed=0, batch=300)
        CONDITIONAL.sample(100, seed=0, first=200, batch=50)
    finally:
        hook.remove()
    counts = torch.bincount(seen[0], minlength=3)
    assert int(counts.min()) > 70
    assert torch.equal(torch.cat(seen[1:]), seen[0][200:])


def test_time_points_are_the_default_the_chosen_or_the_given() -> None:
    assert torch.equal(MODEL.sample(3, sigmas=[80.0, 0.821]), MODEL.sample(3, 2))
    assert torch.equal(MODEL.sample(3, sigmas=[80.0, 0.821, 0.002]), MODEL.sample(3, 2))
    chosen = make(time_points={2: (80.0, 1.5)})
    assert torch.equal(chosen.sample(3, 2), MODEL.sample(3, sigmas=[80.0, 1.5]))
    assert not torch.equal(chosen.sample(3, 2), MODEL.sample(3, 2))
    assert torch.equal(chosen.sample(3, 1), MODEL.sample(3, 1))


def test_averaged_weights() -> None:
    other = ConsistencyModel(MODEL.config, trained(NETWORK, 5))
    assert torch.equal(MODEL.sample(3, ema="0.999"), other.sample(3))
    assert not torch.equal(MODEL.sample(3, ema="0.999"), MODEL.sample(3))
    with pytest.raises(InputError, match=r"ema 'x' is not in this model; present: 0.999"):
        MODEL.sample(1, ema="x")
    with pytest.raises(InputError, match="present: none"):
        other.sample(1, ema="x")


def test_callback_sees_every_step_of_every_batch() -> None:
    seen: list[dict[str, Any]] = []
    x = MODEL.sample(5, 2, first=10, batch=2, callback=seen.append)
    assert [(info["first"], info["step"], info["calls"], info["done"]) for info in seen] == [
        (10, 0, 1, 0),
        (10, 1, 2, 2),
        (12, 0, 1, 2),
        (12, 1, 2, 4),
        (14, 0, 1, 4),
        (14, 1, 2, 5),
    ]
    assert [info["sigma"] for info in seen[:2]] == [80.0, 0.821]
    assert torch.equal(torch.cat([info["x0"] for info in seen if info["step"] == 1]), x)


def test_threads_do_not_disturb_each_other() -> None:
    model = make(LABELLED)
    jobs = [{"seed": seed, "steps": 1 + seed % 2, "ema": "0.999" if seed % 3 == 0 else None} for seed in range(12)]
    alone = [make(LABELLED).sample(4, **job) for job in jobs]
    results: dict[int, Tensor] = {}
    gate = threading.Barrier(4)

    def work(rank: int) -> None:
        gate.wait()
        for i in range(rank, len(jobs), 4):
            results[i] = model.sample(4, **jobs[i])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert torch.equal(results[i], expected), i


def test_gradient_mode_is_left_as_it_was() -> None:
    MODEL.sample(1)
    assert torch.is_grad_enabled()


def test_other_precisions_and_copies() -> None:
    model = make()
    expected = model.sample(3, ema="0.999")
    double = copy.deepcopy(model).to(torch.float64)
    assert (double.dtype, model.dtype) == (torch.float64, torch.float32)
    for ema in (None, "0.999"):
        out = double.sample(3, ema=ema)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, model.sample(3, ema=ema), rtol=0, atol=1e-4)
    moved = make()
    moved.sample(1, ema="0.999")
    moved.to(torch.float64)  # also the averaged network that was in use
    assert torch.equal(moved.sample(3, ema="0.999"), double.sample(3, ema="0.999"))
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.sample(3).dtype == torch.float32
    torch.testing.assert_close(half.sample(3), model.sample(3), rtol=0, atol=0.2)
    assert torch.equal(model.sample(3, ema="0.999"), expected)
    with torch.no_grad():
        for parameter in copy.deepcopy(model).parameters():
            parameter.zero_()
    assert torch.equal(model.sample(3, ema="0.999"), expected)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": -1}, "n is -1"),
        ({"n": 1.5}, "n is 1.5"),
        ({"n": 2, "steps": 0}, "steps is 0"),
        ({"n": 2, "steps": 1.0}, "steps is 1.0"),
        ({"n": 2, "first": -1}, "first is -1"),
        ({"n": 2, "first": 0.5}, "first is 0.5"),
        ({"n": 2, "seed": 0.5}, "seed is 0.5"),
        ({"n": 2, "seed": "a"}, "seed is 'a'"),
        ({"n": 2, "batch": 0}, "batch is 0"),
        ({"n": 2, "batch": 1.5}, "batch is 1.5"),
        ({"n": 2, "seeds": [1, 2, 3]}, "3 seeds are given for 2 images"),
        ({"n": 2, "noise": unit(3)}, r"noise has shape \(3, 1, 8, 8\), must be \(2, 1, 8, 8\)"),
        ({"n": 2, "labels": 1}, "unconditional"),
        ({"n": 2, "guidance": 1.0}, "guidance=1"),
        ({"n": 2, "sigmas": []}, "sigmas is empty"),
        ({"n": 2, "sigmas": [1.0, 2.0]}, "must descend"),
        ({"n": 2, "sigmas": [100.0]}, "at most 80"),
        ({"n": 2, "sampler": "heun"}, "sampler 'heun' does not fit a consistency model; possible: auto, restart"),
        ({"n": 2, "sampler": "ddim"}, "sampler 'ddim' does not fit"),
        ({"n": 2, "ema": "0.5"}, "ema '0.5' is not in this model"),
    ],
)
def test_samples_that_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        MODEL.sample(**arguments)
    assert "\n" not in str(caught.value)


def test_labels_that_are_refused() -> None:
    for labels, text in ((3, "label 3 is out of range"), ([0, 1], "2 labels are given for 3 images"), ([0, 1, 9], "label 9")):
        with pytest.raises(InputError, match=text):
            CONDITIONAL.sample(3, labels=labels)
