"""Whose folder it is, and a log that can be continued."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import pytest

from atonce.core.errors import InputError, ModelFileError, StorageError
from atonce.training import rundir
from atonce.training.rundir import RunFolder, empty_beside, replace_folder

FACTS = {
    "data": {"name": "digits", "source": "bundled", "digest": "0123456789abcdef" * 4, "count": 1797, "shape": [1, 8, 8]},
    "versions": {"atonce": "0"},
    "started": "2026-01-01T00:00:00+00:00",
}


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def recipe(tools):
    return tools.make_recipe().resolve(8, 1, 10, 0.75)


def test_a_new_folder_is_claimed_and_recognised(tmp_path, recipe):
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.claim(recipe, FACTS, resume=True) is False
    assert folder.read_recipe() == recipe
    assert folder.read_facts() == FACTS
    before = snapshot(folder.path)
    assert folder.claim(recipe, {**FACTS, "started": "later"}, resume=True) is True
    assert snapshot(folder.path) == before


def test_an_empty_folder_may_be_taken(tmp_path, recipe):
    assert RunFolder(tmp_path).claim(recipe, FACTS, resume=True) is False


def test_not_resume_refuses_a_run(tmp_path, recipe):
    RunFolder(tmp_path).claim(recipe, FACTS, resume=False)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder(tmp_path).claim(recipe, FACTS, resume=False)
    assert snapshot(tmp_path) == before


def test_another_recipe_is_refused_with_what_differs(tmp_path, recipe):
    RunFolder(tmp_path).claim(recipe, FACTS, resume=True)
    network = dataclasses.replace(recipe.network, channels=16)
    other = dataclasses.replace(recipe, lr=3e-4, ema=(0.5,), network=network)
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path).claim(other, FACTS, resume=True)
    text = str(caught.value)
    assert "\n" not in text
    assert "lr: 0.0001 -> 0.0003" in text
    assert "ema: [0.9, 0.99] -> [0.5]" in text
    assert "network.channels: 8 -> 16" in text
    assert "seed" not in text
    assert snapshot(tmp_path) == before


def test_other_data_are_refused(tmp_path, recipe):
    RunFolder(tmp_path).claim(recipe, FACTS, resume=True)
    other = {**FACTS, "data": {**FACTS["data"], "name": "letters", "digest": "f" * 64}}
    with pytest.raises(InputError, match=r"trained on other data \(digits, digest 0123456789ab; now letters, digest ffffff"):
        RunFolder(tmp_path).claim(recipe, other, resume=True)


@pytest.mark.parametrize("content", ["file", "run.json", "recipe.json.bak", ".hidden", "folder"])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path, recipe, content):
    target = tmp_path / "mine"
    target.mkdir()
    if content == "folder":
        (target / "folder").mkdir()
    else:
        (target / content).write_text('{"my": "own"}')
    before = snapshot(target)
    with pytest.raises(InputError, match="is not a training run: choose another folder, nothing was changed"):
        RunFolder(target).claim(recipe, FACTS, resume=True)
    assert snapshot(target) == before


def test_a_file_in_the_way_is_refused(tmp_path, recipe):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is not a training run"):
        RunFolder(tmp_path / "file").claim(recipe, FACTS, resume=True)
    with pytest.raises(StorageError, match="cannot write"):
        RunFolder(tmp_path / "file" / "run").claim(recipe, FACTS, resume=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_kill_during_the_claim_leaves_may_be_taken(tmp_path, recipe):
    (tmp_path / "run.json").write_text(json.dumps(FACTS))
    (tmp_path / ".recipe.json.abcd1234.tmp").write_text('{"met')
    folder = RunFolder(tmp_path)
    assert folder.claim(recipe, FACTS, resume=True) is False
    folder.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.json", "run.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"nope": 1}', '{"lr": -1}', "\x00\xff"])
def test_a_damaged_recipe_is_one_clear_error(tmp_path, recipe, content):
    (tmp_path / "recipe.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelFileError, match=r"recipe\.json cannot be read") as caught:
        RunFolder(tmp_path).claim(recipe, FACTS, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"data": 3}'])
def test_without_run_json_nobody_knows_the_data(tmp_path, recipe, content):
    RunFolder(tmp_path).claim(recipe, FACTS, resume=True)
    (tmp_path / "run.json").unlink()
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"run\.json is missing or damaged"):
        RunFolder(tmp_path).claim(recipe, FACTS, resume=True)


def test_no_run_is_named_as_such(tmp_path):
    with pytest.raises(ModelFileError, match=r"is not a training run: it has no recipe\.json"):
        RunFolder(tmp_path).read_recipe()


def test_two_processes_do_not_train_in_one_folder(tmp_path, recipe):
    pytest.importorskip("fcntl")
    RunFolder(tmp_path).claim(recipe, FACTS, resume=True)
    script = """
        import sys
        from atonce.core.errors import InputError
        from atonce.training.rundir import RunFolder
        try:
            with RunFolder(sys.argv[1]).hold():
                print("held")
        except InputError as error:
            print(error)
    """

    def other() -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], timeout=240, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with RunFolder(tmp_path).hold():
        assert "another process trains in" in other()
        with pytest.raises(InputError, match="another process trains in"), RunFolder(tmp_path).hold():
            pass
    assert other() == "held\n"


def test_the_log_is_cut_where_a_checkpoint_stands(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.log_size() == 0
    assert folder.read_log() == []
    folder.append({"images": 16, "loss": 0.1, "word": "grün"})
    size = folder.log_size()
    assert size == folder.log_file.stat().st_size > 0
    folder.append({"images": 32, "loss": 0.2})
    with open(folder.log_file, "a") as file:
        file.write('{"images": 48, "lo')  # a kill
    assert [line["images"] for line in folder.read_log()] == [16, 32]
    folder.cut_log(size)
    assert folder.read_log() == [{"images": 16, "loss": 0.1, "word": "grün"}]
    folder.append({"images": 32, "loss": 0.3})
    assert [line["loss"] for line in folder.read_log()] == [0.1, 0.3]


def test_a_log_that_is_shorter_than_the_checkpoint_says_is_not_filled_up(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append({"images": 16})
    folder.cut_log(10_000)
    assert folder.read_log() == [{"images": 16}]
    assert b"\0" not in folder.log_file.read_bytes()


def test_a_folder_takes_the_place_of_another(tmp_path):
    old = tmp_path / "best"
    for content in ("one", "two"):
        new = empty_beside(old)
        assert not new.exists()
        new.mkdir()
        (new / "file").write_text(content)
        replace_folder(new, old)
        assert (old / "file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_an_earlier_try_left_beside_is_removed(tmp_path):
    old, left = tmp_path / "best", tmp_path / ".best.new"
    left.mkdir()
    (left / "half").write_text("")
    assert not empty_beside(old).exists()


def test_tidy_removes_only_what_is_ours(tmp_path):
    folder = RunFolder(tmp_path)
    for path in (folder.samples, folder.checkpoints, tmp_path / ".model.new", tmp_path / ".best.old", folder.best):
        path.mkdir()
        (path / "file").write_text("")
    for path in (folder.samples / ".000.png.x.tmp", folder.checkpoints / ".writing.tmp", tmp_path / ".recipe.json.x.tmp"):
        path.write_text("")
    (tmp_path / "notes.tmp").write_text("mine")
    folder.tidy()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["best/file", "checkpoints/file", "notes.tmp", "samples/file"]


def test_a_full_disk_while_the_folder_is_claimed(tmp_path, recipe, monkeypatch):
    import errno

    original = rundir.write_json

    def full(path, value):
        if path.name == "recipe.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, value)

    monkeypatch.setattr(rundir, "write_json", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        RunFolder(tmp_path / "run").claim(recipe, FACTS, resume=True)
    monkeypatch.undo()
    assert RunFolder(tmp_path / "run").claim(recipe, FACTS, resume=True) is False
