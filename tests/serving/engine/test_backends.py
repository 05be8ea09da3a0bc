"""The choice of a backend: by measurement, within a tolerance, and never at the price of not starting."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atonce
from atonce.core.errors import MissingExtraError
from atonce.model import ConsistencyModel
from atonce.model_config import Guidance
from atonce.serving.backends import MAKERS, Backend, call_of, choose, eager
from atonce.serving.buckets import probe
from atonce.serving.engine import Engine
from atonce.serving.rows import ask_for


class Timed:
    """Makers of networks that give plain PyTorch's values, changed, at a speed of their own."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def maker(self, per_row: float, change: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[..., Any]:
        def make(model: ConsistencyModel, threads: int | None) -> Callable[..., Tensor]:
            network = eager(model)

            def call(x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
                self.now += per_row * x.shape[0]
                return change(network(x, c_noise, **condition))

            return call

        return make


def chosen(model: ConsistencyModel, clock: Timed, wanted: str = "auto", **makers: Any) -> Backend:
    named = {name.replace("_", "-"): maker for name, maker in makers.items()}
    return choose(model, wanted, 8, clock=clock, makers={"eager": clock.maker(0.01), **named})


def missing(*_: Any) -> Any:
    raise MissingExtraError("OpenVINO is not installed: pip install 'atonce[cpu]'")


def test_the_fastest_within_the_tolerance(tiny: Any) -> None:
    clock, model = Timed(), tiny()
    found = chosen(model, clock, openvino=clock.maker(0.005, lambda x: x + 1e-6))
    assert found.name == "openvino"
    assert found.buckets.rate == pytest.approx(200)
    assert [fact["backend"] for fact in found.measured] == ["eager", "openvino"]
    assert found.measured[1]["fits"]
    assert 0 < found.measured[1]["difference"] < 1e-4


def test_a_little_faster_is_not_enough(tiny: Any) -> None:
    clock = Timed()
    assert chosen(tiny(), clock, openvino=clock.maker(0.0095)).name == "eager"


def test_calls_in_turn_decide_and_not_the_first_look(tiny: Any) -> None:
    """A machine that was busy while the first backend was looked at must not speak for the second."""
    clock = Timed()
    plain = clock.maker(0.01)

    def busy_at_first(model: ConsistencyModel, threads: int | None) -> Callable[..., Any]:
        made, calls = plain(model, threads), [0]

        def call(x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            calls[0] += 1
            out = made(x, c_noise, **condition)
            clock.now += x.shape[0] * (0.05 if calls[0] <= 30 else 0.0)
            return out

        return call

    makers = {"eager": busy_at_first, "openvino": clock.maker(0.012)}
    found = choose(tiny(), "auto", 8, clock=clock, makers=makers)
    assert found.measured[0]["rate"] < found.measured[1]["rate"], "at the first look the other one seemed faster"
    assert found.measured[1]["faster"] == pytest.approx(0.01 / 0.012, rel=0.01)
    assert found.name == "eager"


def test_one_that_changes_the_images_is_not_chosen_by_itself(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    clock, model = Timed(), tiny()
    with caplog.at_level(logging.WARNING, "atonce.serving"):
        found = chosen(model, clock, openvino=clock.maker(0.001, lambda x: x + 0.05))
    assert found.name == "eager"
    assert not found.measured[1]["fits"]
    assert found.measured[1]["levels"] > 1
    assert "changes the images and is not used" in caplog.text
    asked = chosen(model, clock, "openvino", openvino=clock.maker(0.001, lambda x: x + 0.05))
    assert asked.name == "openvino", "but on request"
    assert not asked.measured[1]["fits"]


def test_one_that_gives_no_numbers_is_not_chosen(tiny: Any) -> None:
    clock = Timed()
    assert chosen(tiny(), clock, openvino=clock.maker(0.001, lambda x: x * torch.nan)).name == "eager"


@pytest.mark.parametrize("wanted", ["auto", "openvino"])
def test_a_missing_one_falls_back(wanted: str, tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "atonce.serving"):
        found = chosen(tiny(), Timed(), wanted, openvino=missing)
    assert found.name == "eager"
    assert "OpenVINO is not installed" in found.measured[1]["problem"]
    record = next(each for each in caplog.records if "cannot be used" in each.message)
    assert record.levelno == (logging.INFO if wanted == "auto" else logging.WARNING)


def test_a_broken_one_falls_back_with_a_warning(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the compiler has lost its way\n  at line 7")

    with caplog.at_level(logging.WARNING, "atonce.serving"):
        found = chosen(tiny(), Timed(), "compiled", compiled=broken)
    assert found.name == "eager"
    assert "backend compiled cannot be used, eager stays: the compiler has lost its way" in caplog.text

    def breaks_later(model: ConsistencyModel, threads: int | None) -> Any:
        def call(*_: Any, **__: Any) -> Tensor:
            raise ValueError("no such shape")

        return call

    assert chosen(tiny(), Timed(), "openvino", openvino=breaks_later).name == "eager"


def test_compiling_is_not_tried_on_a_cpu_by_itself(tiny: Any) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    clock = Timed()
    found = chosen(tiny(), clock, compiled=never, openvino=clock.maker(0.02), openvino_bf16=clock.maker(0.02))
    assert "compiled" not in [fact["backend"] for fact in found.measured]


def test_without_the_package(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "openvino" or name.startswith("openvino."):
            raise ModuleNotFoundError("No module named 'openvino'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    found = choose(tiny(), "auto", 4)
    assert found.name == "eager"
    assert "pip install 'atonce[cpu]'" in found.measured[1]["problem"]


@pytest.mark.parametrize("told", [{}, {"labels": 0}, {"kind": "denoiser"}, {"guidance": Guidance("embedded", (0.5, 3.0))}])
def test_plain_pytorch_recorded_gives_its_bits(told: dict[str, Any], tiny: Any) -> None:
    model = tiny(**told)
    rows = probe(model, 8)
    ours = call_of(model, eager(model))(rows)
    given = {"guidance": rows.scale} if rows.scale is not None else {}
    assert (ours - model(rows.x, rows.sigma, rows.label, **given)).abs().max() < 1e-5
    assert next(model.network.parameters()).is_contiguous(), "the model itself is left as it is"


@pytest.mark.slow
@pytest.mark.parametrize("told", [{}, {"labels": 0, "kind": "denoiser"}, {"guidance": Guidance("embedded", (0.5, 3.0))}])
def test_openvino(told: dict[str, Any], tiny: Any) -> None:
    pytest.importorskip("openvino", reason="no OpenVINO: pip install 'atonce[cpu]'")
    model = tiny(**told)
    found = choose(model, "openvino", 8, threads=1)
    assert found.name == "openvino"
    assert found.buckets.exact
    assert found.measured[1]["fits"]
    assert found.measured[1]["difference"] < 1e-4


def test_openvino_serves(engine: Callable[..., Engine]) -> None:
    pytest.importorskip("openvino", reason="no OpenVINO: pip install 'atonce[cpu]'")
    model = atonce.load("digits")
    made = engine(model, backend="openvino", max_batch=4, threads=1)
    assert made.status().backend == "openvino"
    asks = [ask_for(model, 1 + i % 3, seed=i, steps=1 + i % 2) for i in range(6)]
    alone = [made.submit(ask).result(60) for ask in asks]
    together = [made.submit(ask) for ask in asks]
    for ask, one, other in zip(asks, alone, together, strict=True):
        assert torch.equal(one, other.result(60))
        assert (one - model.sample(ask.n, seed=ask.seed, sigmas=ask.sigmas)).abs().max() < 1e-4


@pytest.mark.slow
def test_bf16_on_request_is_measured(tiny: Any) -> None:
    pytest.importorskip("openvino", reason="no OpenVINO: pip install 'atonce[cpu]'")
    found = choose(tiny(), "openvino-bf16", 4, threads=1)
    assert found.name == "openvino-bf16"
    assert found.measured[1]["difference"] > found.measured[0]["difference"]


class Small(nn.Module):
    """A network that is compiled in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return (x * self.weight).sin() + c_noise[:, None, None, None]


@pytest.mark.slow
def test_compiled(tiny: Any) -> None:
    found = choose(ConsistencyModel(tiny(labels=0).config, Small()), "compiled", 4, threads=1)
    if found.name == "eager":
        pytest.skip(f"torch.compile does not work here: {found.measured[1]['problem']}")
    assert found.measured[1]["difference"] < 1e-4


def test_every_name_of_the_settings_can_be_made() -> None:
    assert set(MAKERS) == {"eager", "compiled", "openvino", "openvino-bf16"}
