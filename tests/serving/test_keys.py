"""Keys: what is stored proves a token and does not give it away; revoking works at once; a damaged file soon lets nobody in."""

from __future__ import annotations

import json
import logging
import multiprocessing
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.serving.errors import ServiceError
from atonce.serving.keys import GRACE_SECONDS, KeyFile, make_key, read_keys, revoke_key


def refused(file: KeyFile, token: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        file.check(token)
    return caught.value


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_token_opens_and_any_other_does_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, token = make_key(path, "shop", scopes=("generate",), quota="100000/day")
    _, other = make_key(path, "other")
    file = KeyFile(path)
    found = file.check(token)
    assert (found.id, found.name, found.scopes, found.quota) == (key.id, "shop", ("generate",), "100000/day")
    head, secret = (
        token.rsplit("_", 1) if token.count("_") == 2 else (token[: len("atonce_") + 12], token[len("atonce_") + 13 :])
    )
    changed = ("A" if secret[0] != "A" else "B") + secret[1:]
    mixed = f"{head}_{other[len('atonce_') + 13 :]}"  # the secret of another key
    for wrong in (
        f"{head}_{changed}",
        mixed,
        head,
        token + "A",
        token[:-1],
        token.upper(),
        "",
        "é" * 60,
        f" {token}",
        token + "\n",
    ):
        error = refused(file, wrong)
        assert (error.status, error.code) == (401, "invalid_api_key"), wrong
        assert secret not in error.message


def test_the_file_holds_no_token_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    _, token = make_key(path, "shop")
    secret = token[len("atonce_") + 13 :]
    assert len(secret) == 43  # 256 bits in base64
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    revoke_key(path, make_key(path, "second")[0].id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [name.name for name in path.parent.iterdir()] == ["keys.json"]  # nothing temporary is left


def test_tokens_differ(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    tokens = {make_key(path, "same name")[1] for _ in range(20)}
    assert len({t[len("atonce_") : len("atonce_") + 12] for t in tokens}) == len({t[-43:] for t in tokens}) == 20


def test_new_and_revoked_keys_need_no_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, token = make_key(path, "first")
    file = KeyFile(path)
    later, second = make_key(path, "second")
    assert file.check(second).id == later.id
    revoke_key(path, key.id)
    assert "was revoked" in refused(file, token).message
    assert file.check(second).id == later.id
    assert file.active() == 1
    first_time = read_keys(path)[key.id].revoked
    assert revoke_key(path, key.id).revoked == first_time  # a second time changes nothing


def test_a_key_expires(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, token = make_key(path, "short", expires="2100-01-31")
    assert key.expires == "2100-02-01T00:00:00Z"  # a date means its end
    clock = Clock(4_105_123_199.0)  # 2100-01-31T23:59:59Z
    file = KeyFile(path, clock=clock)
    assert file.check(token).id == key.id
    clock.now += 1
    assert "expired on 2100-02-01" in refused(file, token).message
    assert file.active() == 0
    assert make_key(path, "moment", expires="2100-01-31T12:00:00+02:00")[0].expires == "2100-01-31T10:00:00Z"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"expires": "2001-01-01"}, "is past"),
        ({"expires": "soon"}, "'soon' is no date"),
        ({"scopes": ("root",)}, "there is no scope 'root'"),
        ({"scopes": ()}, "a key needs a scope"),
        ({"rate": "often"}, "the rate is 'often'"),
        ({"image_rate": "0/hour"}, "must be 1 to"),
        ({"quota": "9999999999/day"}, "must be 1 to"),
        ({"name": "two\nlines"}, "one line"),
        ({"name": " "}, "one line"),
        ({"name": "x" * 101}, "one line"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(tmp_path: Path, options: dict, said: str) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(InputError, match="^[^\n]*$") as caught:
        make_key(path, **{"name": "shop", **options})
    assert said in str(caught.value)
    assert not path.exists()


def test_revoking_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(InputError, match="cannot read the keys"):
        revoke_key(path, "0" * 12)
    make_key(path, "shop")
    with pytest.raises(InputError, match="there is no key"):
        revoke_key(path, "0" * 12)


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"format": 1}',
    '{"format": 2, "keys": []}',
    '{"format": 1, "keys": [{}]}',
    '{"format": 1, "keys": [7]}',
    '{"format": 1, "keys": [{"id": "0", "name": "n", "hash": "x", "scopes": ["generate"], "created": "2026-01-01"}]}',
    "\x00\xff",
    "[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_refused_at_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="damaged|format") as caught:
        KeyFile(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        make_key(path, "shop")
    assert path.read_text(encoding="latin-1") == content  # not overwritten


@pytest.mark.parametrize("change", ["hash", "twice", "scope", "name", "extra", "date"])
def test_each_field_is_checked(tmp_path: Path, change: str) -> None:
    path = tmp_path / "keys.json"
    make_key(path, "shop")
    content = json.loads(path.read_text())
    entry = content["keys"][0]
    if change == "twice":
        content["keys"].append(entry)
    else:
        wrong = {"hash": ("hash", "00"), "scope": ("scopes", ["root"]), "name": ("name", 7), "extra": ("more", 1)}
        name, value = wrong.get(change, ("expires", "x"))
        entry[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError):
        read_keys(path)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_damage_makes_reading_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    make_key(path, "shop")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try:
        keys = read_keys(path)
    except InputError:
        return
    assert all(len(key.hash) == 64 for key in keys.values())


@pytest.mark.parametrize("damage", ["gone", "broken", "folder"])
def test_a_file_damaged_while_running_is_forgiven_for_a_while_and_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "keys.json"
    _, token = make_key(path, "shop")
    whole = path.read_bytes()
    clock = Clock(50.0)
    file = KeyFile(path, monotonic=clock)
    path.unlink()
    if damage == "broken":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "folder":
        path.mkdir()
    with caplog.at_level(logging.ERROR, "atonce.serving.keys"):
        assert file.check(token).name == "shop"
        clock.now += GRACE_SECONDS - 1
        assert file.check(token).name == "shop"
        assert len(caplog.records) == 1  # said once, not with every request
        assert "keys.json" in caplog.text
        clock.now += 2
        error = refused(file, token)
        assert (error.status, error.code, error.retry_after) == (503, "keys_unavailable", 30.0)
        assert "keys.json" not in error.message
    if damage == "folder":
        path.rmdir()
    path.write_bytes(whole)
    assert file.check(token).name == "shop"


def test_a_file_that_everybody_may_write_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make_key(path, "shop")
    path.chmod(0o666)
    with pytest.raises(InputError, match="chmod 600"):
        KeyFile(path)


def _make_some(path: Path, count: int) -> None:
    for k in range(count):
        make_key(path, f"key {k}")


def test_two_processes_that_make_keys_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make_some, args=(path, 10)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(read_keys(path)) == 30
