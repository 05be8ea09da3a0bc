"""Charts: what is drawn, what stands in the table beside it, and numbers as people read them."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.studio.evidence_chart import (
    Dot,
    Point,
    Series,
    _log_ticks,
    _ticks,
    dot_chart,
    line_chart,
    short,
    significant,
    table,
)


def places(chart: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y)) for x, y in re.findall(r'<circle class="ev-dot[^"]*" cx="([\d.-]+)" cy="([\d.-]+)" r="3.5"', chart)
    ]


def test_points_stand_where_they_belong():
    chart = line_chart([Series("a", (Point(0, 0), Point(10, 5), Point(20, 10)))], title="T", x="X", y="Y")
    (x0, y0), (x1, y1), (x2, y2) = places(chart)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y2 < y0  # up is more
    log = line_chart(
        [Series("a", (Point(1, 1), Point(10, 10), Point(100, 100)))], title="T", x="X", y="Y", log_x=True, log_y=True
    )
    (x0, _), (x1, _), (x2, _) = places(log)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)


def test_every_chart_has_words_and_a_table_with_all_its_numbers():
    chart = line_chart(
        [Series("one", (Point(1, 2.5, (2.0, 3.0), "why"),)), Series("two", (Point(2, 4.0),))], title="T <&>", x="X", y="Y"
    )
    assert 'role="img"' in chart
    assert 'aria-label="T &lt;&amp;&gt;. one: Y 2.50 at X 1; two: Y 4.00 at X 2."' in chart
    assert "<td>2.50</td><td>2.00 to 3.00</td><td>why</td>" in chart
    assert '<th scope="row">two</th><td>2</td><td>4.00</td>' in chart
    assert 'tabindex="0"' in chart
    assert "<&>" not in chart


def test_what_cannot_be_drawn_is_in_the_table_only():
    odd = (Point(1, math.nan), Point(2, math.inf), Point(3, -1.0), Point(0, 1.0), Point(4, 1.0))
    chart = line_chart([Series("a", odd)], title="T", x="X", y="Y", log_x=True, log_y=True)
    assert len(places(chart)) == 1
    assert chart.count("<tr>") == 1 + len(odd)
    assert "nan" not in chart.split("<details>")[0]
    empty = line_chart([Series("a", odd[:2])], title="T", x="X", y="Y")
    assert "nothing to draw" in empty


def test_a_single_point_and_equal_values_are_drawn():
    for log in (False, True):
        assert len(places(line_chart([Series("a", (Point(5, 3),))], title="T", x="X", y="Y", log_x=log, log_y=log))) == 1
        flat = tuple(Point(x, 2.0) for x in (1, 2, 3))
        assert len(places(line_chart([Series("a", flat)], title="T", x="X", y="Y", log_y=log))) == 3
    assert len(places(line_chart([Series("a", (Point(0, 0),))], title="T", x="X", y="Y"))) == 1


def test_dots_have_intervals_marks_and_gaps():
    chart = dot_chart(
        [Dot("base", 4.0, (3.0, 5.0), marked=True), Dot("none", None), Dot("low", 2.0, (-1.0, 5.0), "three seeds")],
        title="T",
        x="X",
    )
    assert chart.count('class="ev-dot') == 2
    assert chart.count('class="ev-base"') == 1
    assert chart.count("not measured") >= 2
    assert "<td>2.00</td><td>-1.00 to 5.00</td><td>three seeds</td>" in chart
    assert "nothing to draw" in dot_chart([Dot("a", None)], title="T", x="X")


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_round_numbers_cover_a_range(low: float, width: float):
    high = low + width
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 9
    slack = 1e-6 * (high - low) + 1e-11
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@given(st.floats(-9, 9), st.floats(0.08, 9))
def test_logarithmic_axes_have_a_few_numbers(power: float, decades: float):
    low, high = 10.0**power, 10.0 ** (power + decades)
    ticks = _log_ticks(low, high)
    assert 1 <= len(ticks) <= 10
    assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7.3741, "7.37"),
        (1234567, "1,230,000"),
        (0.00123456, "0.00123"),
        (-2.5, "-2.50"),
        (1e-9, "1.00e-09"),
        (math.nan, "not finite"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1500, "1500"), (20_000, "20 k"), (1.5e6, "1.5 M"), (0.05, "0.05"), (2e9, "2 G")]
)
def test_numbers_of_axes_are_short(value: float, text: str):
    assert short(value) == text


def test_tables_are_text():
    shown = table(["<a>", "b"], [["<script>", "&"]], 'say "x"')
    assert "<script>" not in shown
    assert 'aria-label="Table: say &quot;x&quot;"' in shown
    assert '<th scope="row">&lt;script&gt;</th><td>&amp;</td>' in shown
