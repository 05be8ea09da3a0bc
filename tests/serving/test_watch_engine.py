"""The quality watch over real engines: through the queue and the backend, with a registry and a canary."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import atonce
from atonce.core.records import Metric, Source, make_record
from atonce.exchange.registry import promote
from atonce.model import ConsistencyModel
from atonce.model_files import model_identity, weights_digest
from atonce.serving.backends import Backend, choose
from atonce.serving.engine import Engine
from atonce.serving.hosts import Hosts
from atonce.serving.metrics import Metrics
from atonce.serving.settings import ServeSettings
from atonce.serving.watch import Watch
from atonce.serving.watch_reference import approved_weights


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


RUNNING: dict[str, torch.nn.Module] = {}
"""The network that each version's backend runs: a copy of its own, as a compiled one is."""


def engine_of(model: ConsistencyModel, settings: ServeSettings, *, version: str, **more: Any) -> Engine:
    def network(model: ConsistencyModel, threads: int | None) -> Any:
        RUNNING[version] = copy.deepcopy(model.network)
        return RUNNING[version]

    def prepare(model: ConsistencyModel) -> Backend:
        return choose(model, "eager", settings.max_batch, makers={"eager": network})

    return Engine(model, settings, version=version, prepare=prepare, **more)


def serving(state: Path, *models: str, **more: object) -> tuple[Hosts, Metrics, Watch]:
    settings = ServeSettings(
        models=models, state=state, backend="eager", max_batch=64, watch_seconds=60.0, watch_images=64, reload_seconds=0, **more
    )
    metrics = Metrics(settings)
    hosts = Hosts(settings, metrics, engine_of=engine_of)
    hosts.start()
    return hosts, metrics, Watch(settings, hosts, metrics, pause=0.0, seeds=itertools.count(1000).__next__)


@pytest.fixture
def digits(state: Path) -> Iterator[tuple[Hosts, Metrics, Watch]]:
    hosts, metrics, watch = serving(state, "digits")
    yield hosts, metrics, watch
    hosts.stop()


def spoil(network: torch.nn.Module, share: float = 0.3) -> None:
    g = torch.Generator().manual_seed(1)
    for value in network.parameters():
        if value.numel() > 1:
            value.data += share * value.data.std() * torch.randn(value.shape, generator=g)


def test_a_good_engine_is_silent_and_a_backend_that_miscomputes_is_found(digits: tuple[Hosts, Metrics, Watch]) -> None:
    hosts, metrics, watch = digits
    watch.round()
    watch.round()
    (facts,) = watch.state()
    assert (facts["model"], facts["rounds"], facts["alarm"], facts["problem"]) == ("digits", 2, False, None)
    body = metrics.text()[0].decode()
    assert 'atonce_images_total{kind="watch",model="digits"' in body
    assert 'lane="bulk"' in body
    spoil(RUNNING[hosts.host("digits").engine("x").version])
    watch.round()
    watch.round()
    (facts,) = watch.state()
    assert facts["alarm"]
    assert "repeats" in facts["exceeded"]


def test_the_reference_is_of_the_files_not_of_the_memory(digits: tuple[Hosts, Metrics, Watch]) -> None:
    hosts, _, _ = digits
    host = hosts.host("digits")
    engine = host.engine("x")
    spoil(engine.model.network)
    assert weights_digest(approved_weights(engine, host)) == weights_digest(atonce.load("digits"))


def registry_with(tmp_path: Path, degraded: bool) -> Path:
    """A registry with digits in its first version, and a second one that its record praises."""
    model = atonce.load("digits")
    pixels = Source("pixels", "aa")
    record = make_record(
        {"frechet": Metric(1.0, (0.98, 1.02))},
        device="cpu", extractor=pixels, reference=Source("d", "bb", 10), data=Source("d", "bb", 10), samples=1000, seed=0,
        steps=1,
    )  # fmt: skip
    model.records[:] = [dataclasses.replace(record, model=model_identity(model))]
    model.save_pretrained(tmp_path / "one")
    promote(tmp_path / "one", tmp_path / "models", "digits")
    spoil(model.network, 0.3 if degraded else 0.001)
    model.records[:] = [dataclasses.replace(record, model=model_identity(model))]
    model.save_pretrained(tmp_path / "two")
    return tmp_path / "models" / "digits"


def test_a_canary_whose_backend_miscomputes_is_taken_back(tmp_path: Path, state: Path) -> None:
    entry = registry_with(tmp_path, degraded=False)
    hosts, metrics, watch = serving(state, str(entry), canary_share=0.5)
    try:
        host = hosts.host("digits")
        promote(tmp_path / "two", entry.parent, "digits")
        host.look()
        assert {each["version"]: each["role"] for each in host.versions()} == {"0001": "stable", "0002": "canary"}
        canary = host.engine("x", "0002")
        watch.check(canary, "digits", "0002")
        assert not watch.state()[0]["alarm"]
        assert len(host.versions()) == 2
        spoil(RUNNING["0002"])
        watch.check(canary, "digits", "0002")
        watch.check(canary, "digits", "0002")
        assert {each["version"]: each["role"] for each in host.versions()} == {"0001": "stable"}
        assert 'atonce_roll_backs_total{model="digits",reason="quality"} 1.0' in metrics.text()[0].decode()
        host.look()  # the registry still names it, but what was taken back is not loaded again
        assert [each["version"] for each in host.versions()] == ["0001"]
    finally:
        hosts.stop()


def test_each_version_has_its_own_reference(tmp_path: Path, state: Path) -> None:
    """A new version is not held against the old one: whether it is better is for records to say, at promotion."""
    entry = registry_with(tmp_path, degraded=True)
    promote(tmp_path / "two", entry.parent, "digits")
    hosts, _, watch = serving(state, str(entry))
    try:
        watch.round()
        watch.round()
        (facts,) = watch.state()
        assert (facts["version"], facts["alarm"], facts["rounds"]) == ("0002", False, 2)
    finally:
        hosts.stop()
