"""Checkpoints are whole or not there, and what is damaged is named."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from atonce.core.errors import ModelFileError, StorageError
from atonce.training import checkpoint
from atonce.training.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint


def state(value: float) -> dict[str, torch.Tensor]:
    return {
        "network/a": torch.full((3, 4), value),
        "network/b": torch.full((2, 2, 3, 3), value).to(memory_format=torch.channels_last),
        "optimizer/0/step": torch.tensor(value),
        "meters": torch.full((2, 3), value, dtype=torch.float64),
        "count": torch.tensor([1, 2], dtype=torch.int64),
        "half": torch.full((2,), value, dtype=torch.bfloat16),
    }


def save(folder: Path, images: int, value: float | None = None, keep: int = 3) -> Path:
    return save_checkpoint(folder, images, state(images if value is None else value), {"recipe": "r"}, keep)


def clocks(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in list_checkpoints(folder)]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "bit":
        content = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    elif how == "header":
        content = b"\xff" * 8 + content[8:]
    path.write_bytes(content)


def test_what_is_written_is_read(tmp_path):
    facts = {"recipe": "abc", "best": float("inf"), "notes": ["äöü", "two"], "stage": [11, 0], "nothing": None}
    tensors = state(0.5)
    path = save_checkpoint(tmp_path, 1234, tensors, facts, 3)
    assert re.fullmatch(r"state-000000001234-[0-9a-f]{16}\.safetensors", path.name)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # no temporary file
    found = load_checkpoint(path)
    assert found.path == path
    assert found.images_seen == 1234
    assert found.facts == {**facts, "images_seen": 1234}
    assert found.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def test_what_was_read_does_not_depend_on_the_file_any_more(tmp_path):
    path = save(tmp_path, 100)
    found = load_checkpoint(path)
    with open(path, "rb+") as file:  # in place, so that a view of the file would see it
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(found.tensors[name], value) for name, value in state(100).items())


def test_the_same_state_has_the_same_name(tmp_path):
    assert save(tmp_path / "a", 16).name == save(tmp_path / "b", 16).name
    assert save(tmp_path / "a", 16, 0.25).name != save(tmp_path / "b", 16).name


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    assert list_checkpoints(tmp_path / "absent") == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept(tmp_path, keep):
    for images in range(100, 700, 100):
        save(tmp_path, images, keep=keep)
    assert clocks(tmp_path) == [600, 500, 400][:keep]
    assert newest_checkpoint(tmp_path).images_seen == 600


def test_the_order_is_that_of_the_clock_not_of_the_names(tmp_path):
    for images in (999_999_999_999, 1_000_000_000_000, 20_000_000_000_000):
        save(tmp_path, images)
    assert clocks(tmp_path) == [20_000_000_000_000, 1_000_000_000_000, 999_999_999_999]


def test_foreign_files_are_ignored_and_kept(tmp_path):
    names = ["notes.txt", "state-000000000900.safetensors", "model.safetensors", "state-x-0123456789abcdef.safetensors"]
    for name in names:
        (tmp_path / name).write_text("not ours")
    for images in (100, 200, 300):
        save(tmp_path, images, keep=1)
    assert newest_checkpoint(tmp_path).images_seen == 300
    assert sorted(path.name for path in tmp_path.iterdir() if path not in list_checkpoints(tmp_path)) == sorted(names)
    with pytest.raises(ModelFileError, match=r"model\.safetensors is not a checkpoint of a training run"):
        load_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("how", ["truncated", "empty", "bit", "header"])
def test_a_damaged_newest_falls_back_and_is_named(tmp_path, how):
    save(tmp_path, 100)
    older = save(tmp_path, 200)
    newest = save(tmp_path, 300)
    damage(newest, how)
    with pytest.warns(UserWarning, match="damaged") as caught:
        found = newest_checkpoint(tmp_path)
    assert found.path == older
    assert torch.equal(found.tensors["network/a"], state(200)["network/a"])
    assert len(caught) == 1
    text = str(caught[0].message)
    assert newest.name in text
    assert older.name in text
    assert "falling back" in text
    assert newest.exists()


def test_a_whole_newest_gives_no_warning(tmp_path):
    damage(save(tmp_path, 100), "bit")
    save(tmp_path, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path).images_seen == 200


def test_a_foreign_file_under_a_right_name_and_checksum_is_refused(tmp_path):
    from safetensors.torch import save_file

    from atonce.core.files import sha256_file

    save(tmp_path, 100)
    stranger = tmp_path / "stranger.tmp"
    save_file({"a": torch.zeros(2)}, stranger)
    stranger.rename(tmp_path / f"state-000000000200-{sha256_file(stranger)[:16]}.safetensors")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert newest_checkpoint(tmp_path).images_seen == 100


def test_all_damaged_is_one_clear_error(tmp_path):
    for images in (100, 200):
        damage(save(tmp_path, images), "bit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelFileError, match="none of the 2 checkpoints") as caught:
            newest_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert "state-000000000200-" in str(caught.value)


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_later_checkpoints_do_not_crowd_out_whole_ones(tmp_path, keep):
    save(tmp_path, 100, keep=3)
    save(tmp_path, 200, keep=3)
    damage(save(tmp_path, 300, keep=3), "bit")
    # The run falls back to 200 and goes on; its next checkpoint comes before the damaged one's clock.
    save(tmp_path, 250, keep=keep)
    assert clocks(tmp_path) == [250, 200][:keep]
    assert newest_checkpoint(tmp_path).images_seen == 250


def test_the_newer_of_two_at_the_same_clock_counts(tmp_path):
    save(tmp_path, 100, 1.0)
    path = save(tmp_path, 100, 2.0)
    assert newest_checkpoint(tmp_path).path == path


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", "no space left on the disk"),
        ("Error while serializing: I/O error: Input/output error (os error 5)", "cannot write"),
    ],
)
def test_a_failed_write_leaves_the_others_whole(tmp_path, monkeypatch, message, wanted):
    from safetensors import SafetensorError

    before = save(tmp_path, 100, keep=1)

    def fails(content, path, **more):
        Path(path).write_bytes(b"half a file")
        raise SafetensorError(message)

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(StorageError, match=wanted) as caught:
        save(tmp_path, 200, keep=1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [before]
    assert newest_checkpoint(tmp_path).images_seen == 100


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        save(tmp_path / "file" / "checkpoints", 100)


def test_death_in_the_middle_of_writing_leaves_the_previous_one(tmp_path):
    """The process is gone at the rename, and in the middle of the file."""
    script = """
        import os, sys
        from pathlib import Path
        import torch
        from atonce.training import checkpoint

        def die(*nothing):
            os._exit(9)

        def half(content, path, **more):
            whole(content, path, **more)
            os.truncate(path, 20)
            die()

        whole = checkpoint.save_file
        for moment in ("rename", "half"):
            folder = Path(sys.argv[1], moment)
            checkpoint.save_checkpoint(folder, 100, {"a": torch.zeros(4)}, {}, 1)
            child = os.fork()
            if child == 0:
                if moment == "rename":
                    Path.replace = die
                else:
                    checkpoint.save_file = half
                checkpoint.save_checkpoint(folder, 200, {"a": torch.ones(4)}, {}, 1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], timeout=240, check=True)
    for moment in ("rename", "half"):
        folder = tmp_path / moment
        assert (folder / ".writing.tmp").exists()
        found = newest_checkpoint(folder)
        assert found.images_seen == 100
        assert torch.equal(found.tensors["a"], torch.zeros(4))
        save(folder, 300, keep=1)
        assert clocks(folder) == [300]
        assert not (folder / ".writing.tmp").exists()
