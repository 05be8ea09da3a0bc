"""What an edit tells, put together."""

from __future__ import annotations

from types import SimpleNamespace

from atonce.core.follow import Follow, steps_of


def tell(follow: Follow, step: int, first: int, rows: int, calls: int, labels=None, **more) -> None:
    told = None if labels is None else SimpleNamespace(tolist=lambda: labels)
    follow({"step": step, "sigma": 80.0 / (step + 1), "calls": calls, "first": first, "x0": [0] * rows, "labels": told} | more)


def test_parts_and_steps_add_up():
    follow = Follow(count=5, steps=2, first=10)
    done = []
    for first, rows, labels in ((10, 3, [1, 2, 3]), (13, 2, [4, 5])):
        for step in range(2):
            tell(follow, step, first, rows, step + 1, labels, clamped=0.1 * first)
            done.append(follow.done)
    assert follow.sigmas == [80.0, 40.0]
    assert follow.calls == 2
    assert follow.labels == [1, 2, 3, 4, 5]
    assert follow.clamped == 1.3
    assert done == [1.5, 3.0, 4.0, 5.0]


def test_windows_follow_each_other():
    follow = Follow(count=2, steps=2)
    for window in range(3):
        for step in range(2):
            tell(follow, step, 0, 2, step + 1, [7, 7], window=window, windows=3)
    assert follow.calls == 6
    assert follow.labels == [7, 7]
    assert follow.done == 2


def test_steps_are_those_asked_for_or_the_default():
    def edit(steps: int = 16) -> None: ...

    assert steps_of(edit, None, None) == 16
    assert steps_of(edit, 3, None) == 3
    assert steps_of(edit, None, [2.0, 1.0]) == 2
