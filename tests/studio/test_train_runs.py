"""Runs as they stand: read from what they wrote, whoever started them, and shown without letting anything of it act."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from atonce.core.files import write_json
from atonce.core.images import save_png
from atonce.studio.train_process import Launch, Trainings
from atonce.studio.train_runs import MOST, Run, Runs, own_words
from atonce.studio.train_views import compare_html, list_html, run_html, signature, time_left
from atonce.training.presets import PRESETS
from atonce.training.rundir import RunFolder

TOTAL = 640


def write_run(runs: Path, name: str, lines: int = 4, done: bool = False, digest: str = "d", **changes: object) -> Path:
    """A run folder as the loop leaves it."""
    folder = runs / name
    folder.mkdir(parents=True)
    recipe = PRESETS["digits"](images=TOTAL, batch=64, **changes)
    write_json(folder / "recipe.json", recipe.as_dict())
    facts = {"name": "digits", "count": 1797, "shape": [1, 8, 8], "digest": digest}
    write_json(folder / "run.json", {"data": facts, "versions": {}, "started": "2026-01-01T00:00:00+00:00"})
    log = [{"images": 64 * (k + 1), "loss": 5.0 / (k + 1), "seconds": float(k), "rate": 100.0} for k in range(lines)]
    if done:
        log += [{"images": TOTAL, "loss": 1.0, "seconds": 9.0, "rate": 100.0}]
        log += [{"images": TOTAL, "frechet-pixels-1": 0.5, "best": True, "seconds": 9.5, "rate": 100.0}]
        (folder / "model").mkdir()
        (folder / "samples").mkdir()
        save_png(folder / "samples" / f"{TOTAL:012d}.png", torch.zeros(4, 4, 3, dtype=torch.uint8))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def note(
    runs: Path, name: str, *, err: str = "", out: str = "", owner: str = "me", private: bool = False, **more: object
) -> Launch:
    """As if this studio had started it, with a process that is gone."""
    made = Trainings(runs)
    made.notes.mkdir(exist_ok=True)
    command = ("train", "digits", "--data", "/home/me/pictures", "--out", str(runs / name))
    launch = Launch(name, command, str(runs), owner, private, "pictures (yours)", time.time(), 0, **more)  # type: ignore[arg-type]
    write_json(made.notes / f"{name}.json", launch.__dict__ | {"command": list(command)})
    (made.notes / f"{name}.err").write_text(err)
    (made.notes / f"{name}.out").write_text(out)
    return launch


def state(runs: Path, name: str) -> tuple[str, str]:
    run = Runs(Trainings(runs)).get(name, "me")
    assert run is not None
    return run.state, run.problem


def test_a_finished_run_started_elsewhere_is_read(tmp_path):
    write_run(tmp_path, "deep/er/run", done=True)
    runs = Runs(Trainings(tmp_path))
    assert runs.names("anybody") == ["deep/er/run"]
    run = runs.get("deep/er/run", "anybody")
    assert run is not None
    assert (run.state, run.images_seen, run.total, run.share, run.metric) == ("finished", TOTAL, TOTAL, 1.0, "frechet-pixels-1")
    assert run.losses[0] == (64, 5.0)
    assert run.quality == [(TOTAL, 0.5)]
    assert run.launch is None
    assert not run.alive


def test_states_of_runs_that_ended(tmp_path):
    write_run(tmp_path, "cut")
    assert state(tmp_path, "cut") == ("interrupted", "")
    write_run(tmp_path, "asked")
    note(tmp_path, "asked", out="runs/asked: 256 images seen, stopped; the same command continues it\n")
    assert state(tmp_path, "asked") == ("stopped", "")
    write_run(tmp_path, "early")
    note(tmp_path, "early", err="atonce: interrupted\n")
    assert state(tmp_path, "early")[0] == "stopped"
    write_run(tmp_path, "killed")
    note(tmp_path, "killed", err="training  0.2/0.6 kimg  33 %  left 0:00:10\n")
    assert state(tmp_path, "killed") == ("interrupted", "")
    write_run(tmp_path, "broken")
    note(tmp_path, "broken", err="Traceback (most recent call last):\n  File\nMemoryError: out\n")
    assert state(tmp_path, "broken") == ("failed", "MemoryError: out")
    write_run(tmp_path, "full", done=True)
    note(tmp_path, "full", err="atonce: warning: 2 pictures were left out\n")
    assert state(tmp_path, "full") == ("finished", "")


def test_what_went_wrong_is_the_runs_own_line(tmp_path):
    write_run(tmp_path, "nan")
    line = f"the loss is not finite at 256 images: the last good checkpoint is {tmp_path}/nan/checkpoints/1; a lower lr helps"
    note(tmp_path, "nan", err=f"atonce: warning: something\ntraining  0.2/0.6 kimg\natonce: {line}\n")
    assert state(tmp_path, "nan") == ("failed", line)
    run = Runs(Trainings(tmp_path)).get("nan", "me")
    shown = run_html(run)
    assert "the loss is not finite at 256 images: the last good checkpoint is nan/checkpoints/1" in shown
    assert str(tmp_path) not in shown
    assert 'role="alert"' in shown


def test_bad_data_end_a_run_before_it_has_a_folder(tmp_path):
    note(tmp_path, "none", err="atonce: /home/me/pictures holds no pictures\n")
    run = Runs(Trainings(tmp_path)).get("none", "me")
    assert run is not None
    assert (run.state, run.recipe, run.log) == ("failed", None, ())
    assert own_words(run, run.problem) == "pictures (yours) holds no pictures"
    assert "pictures (yours) holds no pictures" in list_html([run])


def test_a_run_that_a_process_holds_is_at_work(tmp_path):
    folder = write_run(tmp_path, "busy")
    if not Path("/proc/locks").exists():
        pytest.skip("this system does not list locks")
    with RunFolder(folder).hold():
        run = Runs(Trainings(tmp_path)).get("busy", "me")
        assert run is not None
        assert run.state == "elsewhere"
        assert run.alive
    assert state(tmp_path, "busy")[0] == "interrupted"


def test_private_runs_are_their_owners(tmp_path):
    write_run(tmp_path, "hers")
    note(tmp_path, "hers", owner="she", private=True)
    write_run(tmp_path, "shared")
    note(tmp_path, "shared", owner="she")
    runs = Runs(Trainings(tmp_path))
    assert runs.names("me") == ["shared"]
    assert set(runs.names("she")) == {"hers", "shared"}
    assert runs.get("hers", "me") is None
    assert runs.get("hers", "she") is not None


@pytest.mark.parametrize("name", ["", None, "..", "../x", "a/../../x", "/etc", ".studio", "a//b", "./a", "nothing"])
def test_other_names_are_no_runs(tmp_path, name: str | None):
    write_run(tmp_path / "runs", "a")
    write_run(tmp_path, "x")
    note(tmp_path / "runs", "a")
    assert Runs(Trainings(tmp_path / "runs")).get(name, "me") is None


def test_damaged_lines_and_recipes_are_left_out(tmp_path):
    folder = write_run(tmp_path, "torn")
    with (folder / "log.jsonl").open("a") as file:
        file.write('7\n{"loss": 3}\n{"images": "x"}\n{"images": 320, "loss": ')
    (folder / "recipe.json").write_text('{"method": 5')
    (folder / "run.json").write_text("[]")
    run = Runs(Trainings(tmp_path)).get("torn", "me")
    assert run is not None
    assert len(run.log) == 4
    assert run.recipe is None
    assert run.total is None
    assert "torn" in run_html(run)


def test_progress_comes_from_what_the_process_says(tmp_path, monkeypatch):
    write_run(tmp_path, "live")
    note(tmp_path, "live", err="training  0.3/0.6 kimg  50 %  1.2 kimg/s  left 0:01:05  loss 2\n")
    monkeypatch.setattr(Launch, "alive", property(lambda self: True))
    run = Runs(Trainings(tmp_path)).get("live", "me")
    assert run is not None
    assert (run.state, run.share, run.left, time_left(run)) == ("running", 0.5, "0:01:05", "0:01:05")
    (tmp_path / ".studio" / "live.err").write_text("")
    run = Runs(Trainings(tmp_path)).get("live", "me")
    assert run is not None
    assert run.share == 256 / TOTAL
    assert time_left(run) == "0:00:04"  # 384 images at 100 a second
    note(tmp_path, "live", asked=1.0)
    run = Runs(Trainings(tmp_path)).get("live", "me")
    assert run is not None
    assert run.state == "stopping"
    assert time_left(run) == ""


def test_a_log_is_read_again_only_when_it_has_grown(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "a")
    runs = Runs(Trainings(tmp_path))
    before = runs.get("a", "me")
    reads = []
    real = RunFolder.read_log
    monkeypatch.setattr(RunFolder, "read_log", lambda self: reads.append(1) or real(self))
    assert signature(runs.get("a", "me")) == signature(before)
    assert reads == []
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"images": 320, "loss": 1.0}) + "\n")
    after = runs.get("a", "me")
    assert len(reads) == 1
    assert signature(after) != signature(before)


def test_the_view_shows_curves_as_pictures_and_tables_and_the_latest_samples(tmp_path):
    write_run(tmp_path, "a", done=True)
    shown = run_html(Runs(Trainings(tmp_path)).get("a", "me"))
    assert shown.count("<svg class=") == 2
    assert shown.count("The same as a table") == 2
    assert "data:image/png;base64," in shown
    assert f"Samples after {TOTAL:,} images" in shown
    assert f"{TOTAL:,} of {TOTAL:,} images" in shown
    assert "No run is chosen" in run_html(None)


def test_names_and_notes_are_text(tmp_path):
    folder = write_run(tmp_path, "a")
    (folder / "log.jsonl").write_text(json.dumps({"images": 64, "loss": 1.0, "notes": ["<script>alert(1)</script>"]}) + "\n")
    note(tmp_path, "a", err="atonce: <img src=x onerror=alert(1)>\n")
    run = Runs(Trainings(tmp_path)).get("a", "me")
    for shown in (run_html(run), list_html([run])):
        assert "<script" not in shown
        assert "<img src=x" not in shown
        assert "&lt;" in shown


def test_runs_side_by_side_differ_in_what_is_listed(tmp_path):
    write_run(tmp_path, "a", done=True)
    write_run(tmp_path, "b", done=True, lr=5e-4)
    runs = Runs(Trainings(tmp_path))
    both = [runs.get(name, "me") for name in ("a", "b")]
    shown = compare_html(both)
    assert shown.count('<svg class="ev-chart"') == 2
    assert "<td>0.002</td><td>0.0005</td>" in shown
    assert "batch</th>" not in shown
    assert "cannot be compared" not in shown
    assert "Choose two runs" in compare_html(both[:1])
    assert "9 runs are chosen, at most 8" in compare_html(both[:1] * 9)


def test_what_cannot_be_compared_stands_apart_and_is_said(tmp_path):
    write_run(tmp_path, "a", done=True)
    write_run(tmp_path, "b", done=True, digest="other", distance="l2")
    runs = Runs(Trainings(tmp_path))
    shown = compare_html([runs.get(name, "me") for name in ("a", "b")])
    assert shown.count('<svg class="ev-chart"') == 3
    assert "distances cannot be compared" in shown
    assert "losses are of different kinds" in shown


def test_the_list_says_how_many_more_there_are(tmp_path):
    write_run(tmp_path, "a")
    run = Runs(Trainings(tmp_path)).get("a", "me")
    assert isinstance(run, Run)
    assert "1,200 older runs" in list_html([run], 1200)
    assert "There is no run yet" in list_html([])
    assert MOST >= 100
