"""The pictures of an editing: undo, redo and branches lose nothing, and what is kept survives."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.studio import edit_chain
from atonce.studio.edit_chain import Album


@pytest.fixture
def album(tmp_path) -> Album:
    return Album(tmp_path, threading.Lock())


def add(album: Album, title: str, parent: str | None = None, count: int = 1):
    return album.add([f"{title}-{i}".encode() for i in range(count)], title, {"kind": title}, (8, 8), parent)


def test_an_empty_album_has_nothing_and_undo_changes_nothing(album):
    chain = album.chain()
    assert (chain.shown, chain.before, chain.after, chain.path()) == (None, None, None, [])
    assert album.undo() == album.redo() == chain


def test_undo_and_redo_follow_the_way_that_was_gone(album):
    a, _ = add(album, "a")
    b, _ = add(album, "b", a.id)
    c, _ = add(album, "c", b.id)
    assert [step.title for step in album.chain().path()] == ["a", "b", "c"]
    assert album.undo().current == b.id
    assert album.undo().current == a.id
    assert album.undo().current == a.id
    assert album.redo().current == b.id
    assert album.redo().current == c.id
    assert album.redo().current == c.id


def test_another_branch_loses_nothing(album):
    a, _ = add(album, "a")
    b, _ = add(album, "b", a.id)
    album.undo()
    c, shown = add(album, "c", a.id)
    assert shown
    assert [step.title for step in album.chain().steps] == ["a", "b", "c"]
    album.undo()
    assert album.chain().after.id == c.id
    album.go(b.id)
    album.undo()
    assert album.chain().after.id == b.id  # the branch that was last gone


def test_work_that_began_elsewhere_is_kept_but_not_shown(album):
    a, _ = add(album, "a")
    b, _ = add(album, "b", a.id)
    late, shown = add(album, "late", a.id)  # its work began before b was made
    assert not shown
    assert album.chain().current == b.id
    assert album.picture(album.chain().get(late.id)) == b"late-0"


def test_one_of_several_can_be_chosen(album):
    a, _ = add(album, "a", None, 3)
    assert album.picture(a) == b"a-0"
    chosen = album.choose(2).shown
    assert album.picture(chosen) == b"a-2"
    with pytest.raises(InputError, match="there is no picture 4"):
        album.choose(3)


def test_everything_survives_a_new_start_and_can_be_removed(tmp_path, album):
    a, _ = add(album, "a", None, 2)
    add(album, "b", a.id)
    album.undo()
    again = Album(tmp_path, threading.Lock())
    assert again.chain() == album.chain()
    assert again.picture(again.chain().shown, 1) == b"a-1"
    again.clear()
    assert again.chain().steps == ()
    assert not (tmp_path / "edit").exists()


def test_a_damaged_file_is_an_empty_chain_and_work_goes_on(tmp_path, album):
    add(album, "a")
    (tmp_path / "edit" / "chain.json").write_text("{")
    assert album.chain().steps == ()
    add(album, "b")
    assert [step.title for step in album.chain().steps] == ["b"]


def test_steps_that_are_gone_are_named(album):
    a, _ = add(album, "a")
    with pytest.raises(InputError, match="this step is not there"):
        album.go("nothing")
    with pytest.raises(InputError, match="this picture is not there"):
        album.picture(dataclasses.replace(a, id="gone"))


def test_the_oldest_ends_are_forgotten_but_never_the_way_to_what_is_shown(tmp_path, album, monkeypatch):
    monkeypatch.setattr(edit_chain, "MOST_STEPS", 5)
    a, _ = add(album, "a")
    for name in "bcd":
        add(album, name, a.id)
        album.go(a.id)
    e, _ = add(album, "e", a.id)
    f, _ = add(album, "f", e.id)
    g, _ = add(album, "g", f.id)
    titles = [step.title for step in album.chain().steps]
    assert titles == ["a", "d", "e", "f", "g"]
    assert len(list((tmp_path / "edit").glob("*.png"))) == 5
    for name in "hijk":
        g, _ = add(album, name, g.id)
    assert [step.title for step in album.chain().path()] == list("aefghijk")


@given(st.lists(st.sampled_from(["add", "undo", "redo", "go", "new"]), max_size=30), st.randoms(use_true_random=False))
def test_whatever_is_done_every_picture_stays_and_the_file_is_whole(tmp_path_factory, actions, random):
    album = Album(tmp_path_factory.mktemp("album"), threading.Lock())
    count = 0
    for action in actions:
        steps = album.chain().steps
        if action in ("add", "new"):
            add(album, str(count), album.chain().current if action == "add" else None)
            count += 1
        elif action == "go" and steps:
            album.go(random.choice(steps).id)
        elif action in ("undo", "redo"):
            getattr(album, action)()
        chain = album.chain()
        assert len(chain.steps) == count
        assert (chain.shown is None) == (count == 0)
        if chain.after is not None:
            assert chain.after.parent == chain.current
    assert [album.picture(step).decode() for step in album.chain().steps] == [f"{k}-0" for k in range(count)]
    if count:
        json.loads((album._folder / "chain.json").read_text())
