from __future__ import annotations

import builtins
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.progress import Progress, format_count, format_duration, progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(total: float, seconds_each: float, pieces: int, **arguments) -> list[str]:
    """Lines shown by work that does total in equal pieces, each of the same duration."""
    clock, stream = Clock(), io.StringIO()
    with Progress("training", total, "img", clock=clock, stream=stream, **arguments) as bar:
        for piece in range(1, pieces + 1):
            clock.now += seconds_each
            bar.update(total * piece / pieces)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.4, "0:00:59"),
        (59.6, "0:01:00"),
        (372, "0:06:12"),
        (3600, "1:00:00"),
        (49 * 3600 + 61, "49:01:01"),
        (-3, "0:00:00"),
        (None, "?"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(0, 1e7))
def test_format_duration_says_the_seconds(seconds):
    hours, minutes, rest = map(int, format_duration(seconds).split(":"))
    assert 0 <= minutes < 60
    assert 0 <= rest < 60
    assert abs(hours * 3600 + minutes * 60 + rest - seconds) <= 0.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((7, "img"), "7 img"),
        ((7,), "7"),
        ((0, "img"), "0 img"),
        ((1.84, "img"), "1.8 img"),
        ((0.0123, "step"), "0.012 step"),
        ((317.2, "img"), "317 img"),
    ],
)
def test_format_count(arguments, text):
    assert format_count(*arguments) == text


def test_format_count_in_thousands():
    assert format_count(320_000, "img", kilo=True) == "320 kimg"
    assert format_count(1_840, "img", kilo=True) == "1.8 kimg"
    assert format_count(1_000_000, kilo=True) == "1000"


def test_line_of_a_long_run():
    # 320,000 images in 178 s: 1797.75 a second, so 680,000 more take 378.2 s.
    clock, stream = Clock(), io.StringIO()
    with Progress("training", 1_000_000, "img", clock=clock, stream=stream) as bar:
        clock.now += 178
        bar.update(320_000, text="loss 0.12")
        shown = stream.getvalue()
    assert shown == "training  320/1000 kimg  32 %  1.8 kimg/s  left 0:06:18  loss 0.12\n"


def test_small_counts_stay_images():
    assert work(64, 5, 4)[0].startswith("training  32/64 img  50 %  3.2 img/s  left 0:00:10")


def test_one_line_every_ten_seconds_and_a_last_one():
    lines = work(100_000, 0.5, 100)  # 50 s of work
    assert len(lines) == 5  # after 10, 20, 30, 40 and 50 s, the last being the final one
    assert "20/100 kimg  20 %" in lines[0]
    assert lines[-1].startswith("training  100/100 kimg  100 %")
    assert lines[-1].endswith("took 0:00:50")


def test_short_work_says_one_line():
    assert len(work(10, 0.01, 10)) == 1


def test_rate_follows_the_last_half_minute():
    clock = Clock()
    with Progress("x", 10_000, clock=clock, stream=io.StringIO()) as bar:
        for _ in range(100):  # one a second
            clock.now += 1
            bar.update(bar.done + 1)
        assert bar.rate == pytest.approx(1.0)
        for _ in range(60):  # now ten a second
            clock.now += 1
            bar.update(bar.done + 10)
        assert bar.rate == pytest.approx(10.0)
        assert bar.left == pytest.approx((10_000 - 700) / 10)


def test_a_resumed_run_does_not_count_what_was_there():
    clock = Clock()
    with Progress("x", 1000, start=900, clock=clock, stream=io.StringIO()) as bar:
        assert bar.rate is None
        clock.now += 10
        bar.update(910)
        assert bar.rate == pytest.approx(1.0)
        assert bar.left == pytest.approx(90.0)


def test_unknown_total_and_no_rate():
    clock, stream = Clock(), io.StringIO()
    with Progress("reading", None, "img", clock=clock, stream=stream) as bar:
        assert bar.line() == "reading  0 img"
        clock.now += 2
        bar.update(9)
    assert stream.getvalue() == "reading  9 img  4.5 img/s\n"
    assert bar.left is None


def test_percent_is_not_rounded_up():
    bar = Progress("x", 1000, stream=io.StringIO(), clock=Clock())
    bar.done = 999
    assert " 99 %" in bar.line()


def test_stopped_work_says_so():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress("x", 10, stream=stream) as bar:
        bar.update(3)
        raise KeyboardInterrupt
    assert stream.getvalue().startswith("x  3/10  30 %")
    assert stream.getvalue().endswith("(stopped)\n")


def test_stdout_is_never_touched(capsys):
    with progress("x", total=3, every=0.0) as bar:
        bar.update(1)
        bar.write("a note")
    out, err = capsys.readouterr()
    assert out == ""
    assert "a note" in err
    assert "x  1/3" in err


def test_quiet_says_nothing(capsys):
    with progress("x", total=3, every=0.0, quiet=True) as bar:
        bar.update(1)
        bar.write("a note")
    assert capsys.readouterr() == ("", "")


def test_a_closed_stream_does_not_stop_the_work():
    stream = io.StringIO()
    with Progress("x", 10, stream=stream, every=0.0) as bar:
        stream.close()
        bar.update(3)
    assert bar.done == 3


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    clock, stream = Clock(), Terminal()
    with Progress("training", 1_000_000, "img", clock=clock, stream=stream) as bar:
        clock.now += 178
        bar.update(320_000, text="stage [2]")
        bar.write("a note [x]")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "━" in plain
    assert "320/1000 kimg" in plain
    assert "stage [2]" in plain  # no markup in what others say
    assert "a note [x]" in plain
    assert capsys.readouterr() == ("", "")


def test_a_terminal_without_rich_gets_lines(monkeypatch):
    real = builtins.__import__

    def without_rich(name, *arguments, **keywords):
        if name.split(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    stream = Terminal()
    with Progress("x", 10, stream=stream, every=0.0) as bar:
        bar.update(5)
    assert stream.getvalue().startswith("x  5/10  50 %")
    assert "\x1b" not in stream.getvalue()
