"""Trainings as processes: never a foreign run, never a foreign process, and known again by another server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atonce.core.errors import InputError
from atonce.core.files import write_json
from atonce.serving.job_process import host_name, started
from atonce.studio.train_process import FOLDER, Launch, Trainings, sign

# Waits to be asked, says so, and ends.
PATIENT = (
    "import signal, sys, time\n"
    "def stop(number, frame): print('asked by', number, flush=True); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "{}"
    "print('ready', flush=True)\n"
    "time.sleep(300)\n"
)
HEEDS = "signal.signal(signal.SIGINT, stop)\n"


def trainings(runs: Path, script: str = PATIENT.format(HEEDS), at_once: int = 2) -> Trainings:
    return Trainings(runs, at_once, [sys.executable, "-c", script])


def until(what: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def begun(made: Trainings, name: str = "one", owner: str = "me", private: bool = False) -> Launch:
    note = made.start(name, ["train"], owner=owner, private=private, data="digits")
    until(lambda: "ready" in made.said(name, "out"))
    return note


@pytest.fixture
def ending():
    """Ends what a test has left running."""
    made: list[Trainings] = []
    yield made.append
    for each in made:
        for launch in each.running():
            os.kill(launch.pid, signal.SIGKILL)


def test_a_training_is_a_process_of_its_own_session_and_stops_when_asked(tmp_path, ending):
    made = trainings(tmp_path)
    ending(made)
    note = begun(made)
    assert note.alive
    assert os.getsid(note.pid) == note.pid != os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, note.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    assert made.stop("one", "me").asked is not None
    until(lambda: not made.launch("one").alive)
    assert f"asked by {signal.SIGINT:d}" in made.said("one", "out")
    with pytest.raises(InputError, match="does not run"):
        made.stop("one", "me")


def test_another_server_knows_it_again_and_can_stop_it(tmp_path, ending):
    first = trainings(tmp_path)
    ending(first)
    note = begun(first)
    second = trainings(tmp_path)
    assert second.launch("one") == note
    assert [launch.name for launch in second.running()] == ["one"]
    second.stop("one", "me")
    until(lambda: not second.launch("one").alive)
    assert second.resume("one", "me").pid != note.pid
    until(lambda: "ready" in second.said("one", "out"))
    assert second.launch("one").asked is None


def test_where_sigint_is_ignored_it_is_asked_by_sigterm(tmp_path, ending):
    made = trainings(tmp_path, PATIENT.format(""))  # as while the libraries are loaded: no handler of its own
    ending(made)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        begun(made)
    finally:
        signal.signal(signal.SIGINT, before)
    made.stop("one", "me")
    until(lambda: not made.launch("one").alive)
    assert f"asked by {signal.SIGTERM:d}" in made.said("one", "out")


def test_a_number_that_now_is_somebody_elses_is_never_signalled(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        note = Launch("one", ("train",), str(tmp_path), "me", False, "digits", time.time(), other.pid, "12", host_name())
        made = trainings(tmp_path)
        made.notes.mkdir()
        write_json(made.notes / "one.json", note.__dict__ | {"command": ["train"]})
        assert not made.launch("one").alive
        with pytest.raises(InputError, match="does not run"):
            made.stop("one", "me")
        made._signal(note)  # even when asked outright
        real = replace(note, began=started(other.pid) or "", host="another machine")
        assert not real.alive
        time.sleep(0.3)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_at_most_so_many_run_at_once(tmp_path, ending):
    made = trainings(tmp_path, at_once=1)
    ending(made)
    begun(made)
    with pytest.raises(InputError, match=r"1 trainings run already \(one\), at most 1"):
        made.start("two", ["train"], owner="me", private=False, data="digits")
    assert made.launch("two") is None


def test_other_peoples_private_names_are_not_told(tmp_path, ending):
    made = trainings(tmp_path, at_once=1)
    ending(made)
    begun(made, "secret", owner="she", private=True)
    with pytest.raises(InputError) as refused:
        made.start("two", ["train"], owner="me", private=False, data="digits")
    assert "secret" not in str(refused.value)
    for action in (made.stop, made.resume):
        with pytest.raises(InputError, match="was not started here"):
            action("secret", "me", True)


def test_a_run_that_is_there_is_never_overwritten(tmp_path):
    made = trainings(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(InputError, match="not overwritten"):
        made.start("mine", ["train"], owner="me", private=False, data="digits")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"
    with pytest.raises(InputError, match="was not started here"):
        made.resume("mine", "me", True)
    with pytest.raises(InputError, match="was not started here"):
        made.stop("../mine", "me", True)


def test_a_failed_start_may_be_tried_again_under_its_name_by_the_same_person(tmp_path, ending):
    made = trainings(tmp_path, "print('no')")
    ending(made)
    made.start("one", ["train"], owner="me", private=False, data="digits")
    until(lambda: not made.launch("one").alive)
    with pytest.raises(InputError, match="not overwritten"):
        made.start("one", ["train"], owner="she", private=False, data="digits")
    assert made.start("one", ["train"], owner="me", private=False, data="digits").name == "one"


def test_what_another_browser_started_is_stopped_only_on_purpose(tmp_path, ending):
    slow = PATIENT.replace("sys.exit(0)", "time.sleep(300)").format(HEEDS)  # saves for a long time
    made = trainings(tmp_path, slow)
    ending(made)
    begun(made, owner="she")
    with pytest.raises(InputError, match="another browser"):
        made.stop("one", "me")
    assert made.launch("one").asked is None
    assert made.stop("one", "me", sure=True).asked is not None
    with pytest.raises(InputError, match="was asked to stop"):
        made.stop("one", "she")
    with pytest.raises(InputError, match="runs already"):
        made.resume("one", "she")


def test_notes_are_for_the_owner_of_the_server_alone_and_hold_no_names(tmp_path, ending):
    made = trainings(tmp_path)
    ending(made)
    begun(made, owner=sign("cookie-of-mine"))
    assert (tmp_path / FOLDER).stat().st_mode & 0o077 == 0
    assert "cookie-of-mine" not in (tmp_path / FOLDER / "one.json").read_text()
    assert sign("a") != sign("b")


def test_damaged_notes_are_no_runs(tmp_path):
    made = trainings(tmp_path)
    made.notes.mkdir()
    (made.notes / "a.json").write_text("{")
    (made.notes / "b.json").write_text('{"name": "b"}')
    (made.notes / "c.json").write_text("[]")
    assert made.launches() == {}
    assert made.said("a") == ""
