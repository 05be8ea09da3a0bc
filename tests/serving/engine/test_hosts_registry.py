"""A registry's version in use is followed while requests are served."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atonce.exchange import registry
from atonce.serving.host import Host


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
