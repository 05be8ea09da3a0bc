"""Versions of a served model: who gets which, how they change, and what never serves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atonce.core.errors import InputError, ModelFileError
from atonce.exchange import registry
from atonce.serving import host as host_module
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.host import Host
from atonce.serving.rows import ask_for
from atonce.serving.sources import Source, open_source, parse


def roles(host: Host) -> dict[str, str]:
    return {each["role"]: each["version"] for each in host.versions()}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


# ---- names and sources


def test_names() -> None:
    assert parse("digits") == Source("digits", "digits")
    assert parse("/some/run/") == Source("run", "/some/run/")
    assert parse("owner/name") == Source("name", "owner/name")
    assert parse("a=/some/b=c") == Source("a", "/some/b=c")
    for wrong in ("", "=x", "a=", "a b", "a/b=x", "../..", "x" * 81, "ü=digits"):
        with pytest.raises(InputError):
            parse(wrong)


def test_what_cannot_be_served(saved: Any, tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(ModelFileError):
        open_source(str(tmp_path / "nothing"), "cpu")
    with pytest.raises(InputError, match="version"):
        open_source(saved("a"), "cpu", "a/b")
    folder = Path(saved("latent"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"clip": None}))
    with pytest.raises(InputError, match="no grey or RGB pictures"):
        open_source(str(folder), "cpu")


def test_versions_are_digests_or_the_registrys_numbers(saved: Any, tmp_path: Path) -> None:
    first, again, other = saved("a"), saved("b"), saved("c", seed=1)
    one, two, three = (open_source(place, "cpu").version for place in (first, again, other))
    assert one == two, "the same weights are the same version, wherever they lie"
    assert one != three
    registry.promote(first, tmp_path / "registry", "clothes", force="a test")
    entry = str(tmp_path / "registry" / "clothes")
    opened = open_source(entry, "cpu")
    assert opened.version == registry.current(entry)[0]
    assert open_source(first, "cpu", "mine").version == "mine"


# ---- several models


def test_several_models(hosts: Any, saved: Any) -> None:
    found = hosts(f"one={saved('a')}", f"two={saved('b', seed=1)}")
    assert found.names() == ["one", "two"]
    assert found.default == "one"
    assert found.ready
    assert {status.name for status in found.statuses()} == {"one", "two"}
    with pytest.raises(ServiceError) as problem:
        found.host("three")
    assert (problem.value.status, problem.value.param) == (404, "model")
    found.stop()
    assert not found.ready
    assert found.statuses() == []
    with pytest.raises(ServiceError) as problem:
        found.host("one").engine("anyone")
    assert problem.value.code == "draining"


def test_what_does_not_start(hosts: Any, saved: Any, tmp_path: Path, Quick: Any) -> None:
    good = saved("a")
    with pytest.raises(InputError, match="no model"):
        hosts()
    with pytest.raises(InputError, match="two models are called a"):
        hosts(good, f"a={good}")
    with pytest.raises(ModelFileError):
        hosts(good, str(tmp_path / "none"))
    assert [engine.running for engine in Quick.made] == [False], "the one that was started is stopped"
    with pytest.raises(ServiceError, match="not finite"):
        hosts(saved("b", broken=True))


# ---- versions


def test_all_at_once_and_back(hosts: Any, saved: Any, Log: Any) -> None:
    log = Log()
    found = hosts(f"m={saved('a')}", observer=log)
    host = found.host("m")
    old = host.engine("x")
    version = host.load(saved("b", seed=1))
    new = host.engine("x")
    assert (new.version, new is old) == (version, False)
    assert roles(host) == {"stable": version, "previous": old.version}
    assert old.running, "kept ready"
    assert host.engine("x", old.version) is old, "and to be asked for by name"
    with pytest.raises(ServiceError) as problem:
        host.engine("x", "another")
    assert (problem.value.status, problem.value.param) == (404, "version")
    host.roll_back()
    assert host.engine("x") is old
    until(lambda: not new.running)
    assert new.stopped_with == found.settings.request_seconds, "what it has begun is finished"
    assert roles(host) == {"stable": old.version}
    with pytest.raises(ServiceError) as problem:
        host.roll_back()
    assert problem.value.status == 409
    told = [("m", old.version, "stable"), ("m", version, "stable"), ("m", old.version, "gone")]
    assert log.of("loaded") == [*told, ("m", old.version, "stable"), ("m", version, "gone")]


def test_a_canary_gets_its_share_and_keeps_it(hosts: Any, saved: Any) -> None:
    host = hosts(f"m={saved('a')}").host("m")
    stable = host.engine("x")
    version = host.load(saved("b", seed=1), canary=0.25)
    callers = [f"key:{i}" for i in range(4000)]
    got = {caller: host.engine(caller).version for caller in callers}
    share = sum(each == version for each in got.values()) / len(callers)
    assert share == pytest.approx(0.25, abs=0.03)
    assert all(host.engine(caller).version == each for caller, each in got.items()), "sticky"
    assert {each["role"]: each["share"] for each in host.versions()} == {"stable": 0.75, "canary": 0.25}
    host.promote()
    assert roles(host) == {"stable": version, "previous": stable.version}
    assert {host.engine(caller).version for caller in callers[:50]} == {version}
    with pytest.raises(ServiceError) as problem:
        host.promote()
    assert (problem.value.status, problem.value.code) == (409, "no_canary")
    third = host.load(saved("c", seed=2), canary=0.25)
    others = {caller for caller in callers if host.engine(caller).version == third}
    assert others != {caller for caller, each in got.items() if each == version}, "others for another version"
    host.roll_back()
    assert roles(host) == {"stable": version, "previous": stable.version}


def test_what_fails_to_load_never_serves(hosts: Any, saved: Any, tmp_path: Path, Quick: Any) -> None:
    host = hosts(f"m={saved('a')}").host("m")
    before = host.engine("x")
    with pytest.raises(ModelFileError):
        host.load(str(tmp_path / "none"))
    with pytest.raises(ServiceError) as problem:
        host.load(saved("broken", broken=True))
    assert (problem.value.status, problem.value.code) == (409, "broken")
    with pytest.raises(ServiceError, match="other images or classes"):
        host.load(saved("other", labels=0))
    with pytest.raises(ServiceError, match="loaded already"):
        host.load(saved("same"))
    with pytest.raises(InputError, match="share"):
        host.load(saved("b", seed=1), canary=1.5)
    assert host.engine("x") is before
    assert roles(host) == {"stable": before.version}
    assert sum(engine.running for engine in Quick.made) == 1


def test_one_change_at_a_time(hosts: Any, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = hosts(f"m={saved('a')}").host("m")
    entered, leave, place = threading.Event(), threading.Event(), saved("b", seed=1)

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert leave.wait(60)
        return open_source(*arguments)

    monkeypatch.setattr(host_module, "open_source", slow)
    thread = threading.Thread(target=host.load, args=(place,))
    thread.start()
    assert entered.wait(60)
    with pytest.raises(ServiceError) as problem:
        host.roll_back()
    assert (problem.value.status, problem.value.code) == (409, "busy")
    assert host.engine("x").running, "and requests are served all the time"
    host.look()  # says nothing
    leave.set()
    thread.join(60)
    assert len(roles(host)) == 2


# ---- a canary proves itself, or not


def test_a_canary_that_fails_is_taken_back(hosts: Any, saved: Any, Quick: Any) -> None:
    host = hosts(f"m={saved('a')}", canary_seconds=100.0).host("m")
    host.load(saved("b", seed=1), canary=0.5)
    canary = Quick.made[-1]
    canary.count(calls=1000, failures=2)
    host.look()
    assert "canary" in roles(host), "two failures may be anything"
    canary.count(calls=1000, failures=5)
    host.look()
    assert "canary" in roles(host), "one call of two hundred is not more than one of a hundred"
    canary.count(calls=1000, failures=30)
    Quick.made[0].count(calls=1000, failures=20)
    host.look()
    assert "canary" in roles(host), "the stable one fails as often"
    canary.count(calls=1000, failures=60)
    host.look()
    assert "canary" not in roles(host)
    until(lambda: not canary.running)


def test_a_canary_without_faults_becomes_stable(hosts: Any, saved: Any, Quick: Any, Clock: Any) -> None:
    clock = Clock()
    host = hosts(f"m={saved('a')}", clock=clock, canary_seconds=100.0).host("m")
    version = host.load(saved("b", seed=1), canary=0.5)
    clock.now += 150.0
    host.look()
    assert roles(host)["canary"] == version, "one that nobody has used has proved nothing"
    Quick.made[-1].count(calls=5, failures=1)
    host.look()
    assert roles(host)["canary"] == version, "nor one with a fault"
    Quick.made[-1].count(calls=5, failures=0)
    host.look()
    assert roles(host)["stable"] == version


# ---- with real engines


def test_requests_in_flight_finish_on_the_version_they_began_with(hosts: Any, saved: Any, tiny: Any) -> None:
    found = hosts(f"m={saved('a')}", engine_of=Engine, clock=time.monotonic, queue_seconds=1e6)
    host = found.host("m")
    one, other = tiny(), tiny(seed=1)
    futures, stop = [], threading.Event()

    def client() -> None:
        seed = 0
        while not stop.is_set():
            engine = host.engine("x")
            futures.append((engine.version, seed, engine.submit(ask_for(engine.model, 2, seed=seed, steps=3))))
            futures[-1][2].result(60)
            seed += 1

    first = host.engine("x").version
    thread = threading.Thread(target=client)
    thread.start()
    until(lambda: len(futures) > 3)
    second = host.load(saved("b", seed=1))
    until(lambda: futures[-1][0] == second)
    host.roll_back()
    until(lambda: futures[-1][0] == first)
    stop.set()
    thread.join(60)
    models = {first: one, second: other}
    for version, seed, future in futures:
        assert (future.result(0) - models[version].sample(2, 3, seed=seed)).abs().max() < 1e-5


def test_two_models_share_the_device_in_turns(hosts: Any, saved: Any) -> None:
    found = hosts(f"a={saved('a')}", f"b={saved('b', seed=1)}", engine_of=Engine, clock=time.monotonic, queue_seconds=1e6)
    engines = [found.host(name).engine("x") for name in ("a", "b")]
    assert engines[0]._turns is engines[1]._turns
    futures = [engine.submit(ask_for(engine.model, 2, seed=i)) for i in range(20) for engine in engines]
    assert all(future.result(60).shape[0] == 2 for future in futures)
