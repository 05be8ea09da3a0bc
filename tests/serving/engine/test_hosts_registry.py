"""A registry's version in use is followed while requests are served."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atonce.core.errors import StorageError
from atonce.exchange import registry
from atonce.serving.errors import ServiceError
from atonce.serving.host import Host
from atonce.serving.verdicts import order


def roles(host: Host) -> dict[str, str]:
    return {each["role"]: each["version"] for each in host.versions()}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def registered(tmp_path: Path, source: str, name: str = "clothes") -> str:
    registry.promote(source, tmp_path / "registry", name, force="a test")
    return str(tmp_path / "registry" / name)


# ---- the registry


def test_a_new_version_of_the_registry_is_followed(hosts: Any, saved: Any, tmp_path: Path, Quick: Any) -> None:
    entry = registered(tmp_path, saved("a"))
    host = hosts(entry).host("clothes")
    first = host.engine("x").version
    host.look()
    assert roles(host) == {"stable": first}
    registered(tmp_path, saved("b", seed=1))
    host.look()
    second = registry.current(entry)[0]
    assert roles(host) == {"stable": second, "previous": first}
    registry.roll_back(entry)
    host.look()
    assert roles(host) == {"stable": first}, "the engine that was kept"
    assert len(Quick.made) == 2
    host.look()
    assert roles(host) == {"stable": first}


def test_the_registrys_new_version_as_a_canary(hosts: Any, saved: Any, tmp_path: Path) -> None:
    entry = registered(tmp_path, saved("a"))
    host = hosts(entry, canary_share=0.1).host("clothes")
    first = host.engine("x").version
    registered(tmp_path, saved("b", seed=1))
    host.look()
    second = registry.current(entry)[0]
    assert roles(host) == {"stable": first, "canary": second}
    host.look()
    assert roles(host) == {"stable": first, "canary": second}
    host.roll_back()
    host.look()
    assert roles(host) == {"stable": first}, "what was taken back is not loaded again by itself"
    registered(tmp_path, saved("c", seed=2))
    host.look()
    third = registry.current(entry)[0]
    assert roles(host) == {"stable": first, "canary": third}
    registry.roll_back(entry)
    host.look()
    assert roles(host) == {"stable": first}, "the registry took back what was tried; its version before was taken back here"


def test_a_broken_version_of_the_registry_changes_nothing(hosts: Any, saved: Any, tmp_path: Path, caplog: Any) -> None:
    entry = registered(tmp_path, saved("a"))
    host = hosts(entry).host("clothes")
    first = host.engine("x").version
    registered(tmp_path, saved("b", broken=True))
    for _ in range(3):
        host.look()
    assert roles(host) == {"stable": first}
    assert caplog.text.count("cannot serve, nothing has changed") == 1, "said once"
    (Path(entry) / "damaged").mkdir()
    for pointer in Path(entry).glob("*.json"):
        pointer.write_text("{")
    host.look()
    assert roles(host) == {"stable": first}


def test_looking_runs_by_itself(hosts: Any, saved: Any, tmp_path: Path) -> None:
    entry = registered(tmp_path, saved("a"))
    found = hosts(entry, reload_seconds=0.02)
    first = roles(found.host("clothes"))["stable"]
    registered(tmp_path, saved("b", seed=1))
    until(lambda: "previous" in roles(found.host("clothes")))
    now = roles(found.host("clothes"))
    assert now["previous"] == first
    assert now["stable"] != first


# ---- restarts and replicas


def three(saved: Any, tmp_path: Path) -> str:
    for number, name in enumerate("abc"):
        entry = registered(tmp_path, saved(name, seed=number))
    return entry


def test_a_restart_is_no_way_around_the_canary(hosts: Any, saved: Any, tmp_path: Path) -> None:
    entry = registered(tmp_path, saved("a"))
    assert roles(hosts(entry, canary_share=0.5).host("clothes")) == {"stable": "0001"}
    assert registry.marks(entry) == {"0001": "proved"}
    registered(tmp_path, saved("b", seed=1))
    registered(tmp_path, saved("c", seed=2))
    for _ in range(2):
        host = hosts(entry, canary_share=0.5).host("clothes")
        assert roles(host) == {"stable": "0001", "canary": "0003"}
        assert {each["role"]: each["share"] for each in host.versions()} == {"stable": 0.5, "canary": 0.5}
    host.promote()
    assert registry.marks(entry)["0003"] == "proved"
    assert roles(hosts(entry, canary_share=0.5).host("clothes")) == {"stable": "0003"}
    assert registry.current(entry)[0] == "0003"


def test_without_notes_the_version_before_serves_while_the_new_one_is_tried(hosts: Any, saved: Any, tmp_path: Path) -> None:
    entry = three(saved, tmp_path)
    assert roles(hosts(entry, canary_share=0.5).host("clothes")) == {"stable": "0002", "canary": "0003"}
    assert roles(hosts(three(saved, tmp_path / "b")).host("clothes")) == {"stable": "0003"}, "without a canary all at once"


def test_what_was_taken_back_stays_so_after_a_restart(hosts: Any, saved: Any, tmp_path: Path) -> None:
    entry = three(saved, tmp_path)
    for share in (0.5, 0.0):
        host = hosts(entry, canary_share=share).host("clothes")
        if share:
            host.roll_back()
            assert registry.history(entry)[-1]["action"] == "refused"
        assert roles(host) == {"stable": "0002"}
        host.look()
        assert roles(host) == {"stable": "0002"}
    host.load(entry, canary=0.25)
    assert roles(host) == {"stable": "0002", "canary": "0003"}, "its owner may want it all the same"
    assert registry.marks(entry)["0003"] == "tried"


def test_a_version_that_cannot_be_loaded_at_the_start_leaves_it_to_the_last_one(hosts: Any, saved: Any, tmp_path: Path) -> None:
    entry = registered(tmp_path, saved("a"))
    registered(tmp_path, saved("b", broken=True))
    assert roles(hosts(entry).host("clothes")) == {"stable": "0001"}


def test_replicas_agree(hosts: Any, saved: Any, tmp_path: Path, Quick: Any) -> None:
    entry = three(saved, tmp_path)
    one, two = (hosts(entry, canary_share=0.5, state=tmp_path / name).host("clothes") for name in "ab")
    one.promote()
    two.look()
    assert roles(two) == {"stable": "0003", "previous": "0002"}
    two.roll_back()
    one.look()
    assert roles(one) == roles(two) == {"stable": "0002"}
    one.look()
    assert roles(one) == {"stable": "0002"}
    registered(tmp_path, saved("d", seed=3))
    one.look()
    two.look()
    one.roll_back()
    two.look()
    assert roles(one) == roles(two) == {"stable": "0002"}


def test_a_registry_that_cannot_be_written_leaves_it_to_the_state(
    hosts: Any, saved: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    entry = three(saved, tmp_path)
    before = registry.history(entry)

    def refused(*_: object) -> bool:
        raise StorageError("cannot write: Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "mark", refused)
        hosts(entry, canary_share=0.5, state=tmp_path / "state").host("clothes").roll_back()
        again = hosts(entry, canary_share=0.5, state=tmp_path / "state").host("clothes")
        assert roles(again) == {"stable": "0002"}
    kept = tmp_path / "state" / "versions" / "clothes.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert registry.history(entry) == before
    kept.write_text("{")
    assert roles(hosts(entry, canary_share=0.5, state=tmp_path / "state").host("clothes"))["canary"] == "0003"


@pytest.mark.parametrize(
    ("known", "share", "first"),
    [
        ({}, 0.5, ["0002", "0003"]),
        ({}, 0.0, ["0003", "0002"]),
        ({"0001": "proved"}, 0.5, ["0001", "0002", "0003"]),
        ({"0001": "proved", "0002": "refused"}, 0.5, ["0001", "0003"]),
        ({"0003": "proved"}, 0.5, ["0003", "0002"]),
        ({"0003": "refused"}, 0.0, ["0002", "0003"]),
        ({"0001": "proved", "0003": "tried"}, 0.5, ["0001", "0002", "0003"]),
    ],
)
def test_who_serves_at_the_start(known: dict[str, str], share: float, first: list[str]) -> None:
    assert order("0003", "0002", known, share) == first


def test_an_older_version_is_there_while_it_is_needed(hosts: Any, saved: Any, tmp_path: Path, Quick: Any) -> None:
    host = hosts(three(saved, tmp_path)).host("clothes")
    made = len(Quick.made)
    with host.older("0001") as one, host.older("0001") as same:
        assert (one is same, one.version, one.running) == (True, "0001", True)
        assert roles(host) == {"stable": "0003"}, "no caller gets it"
    assert (one.running, len(Quick.made)) == (False, made + 1)
    with pytest.raises(ServiceError) as problem, host.older("0009"):
        pass
    assert problem.value.status == 404
    plain = hosts(f"m={saved('p')}").host("m")
    with pytest.raises(ServiceError) as problem, plain.older("0001"):
        pass
    assert problem.value.status == 404
    host.close(0.0)
    with pytest.raises(ServiceError) as problem, host.older("0001"):
        pass
    assert problem.value.status == 503
