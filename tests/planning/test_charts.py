"""The picture of a return shows its numbers."""

from __future__ import annotations

import pytest

from atonce.planning.charts import return_figure
from atonce.planning.returns import Terms, Way, compare

MANY, ONE = Way("many", 35, 0.36, 1.8), Way("one", 1, 0.01, 0.05)


def test_bars_are_costs_and_lines_meet_at_break_even() -> None:
    found = compare(MANY, ONE, Terms(images_per_day=1_000_000, price_per_hour=3.6, utilisation=1.0, once=700.0))
    money, energy, days = return_figure(found).axes
    assert [bar.get_width() for bar in money.patches] == pytest.approx([0.36, 0.01])
    assert [bar.get_width() for bar in energy.patches] == pytest.approx([found.before.kwh_per_1000, found.after.kwh_per_1000])
    before, after, point = days.lines
    assert list(before.get_ydata()) == pytest.approx([0.0, 7 * 360.0])
    assert list(after.get_ydata()) == pytest.approx([700.0, 700.0 + 7 * 10.0])
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((2.0, 720.0))


def test_what_never_pays_is_said() -> None:
    days = return_figure(compare(ONE, MANY, Terms(once=5.0))).axes[2]
    assert [text.get_text() for text in days.texts] == ["it does not pay back"]
    return_figure(compare(MANY, ONE, Terms(price_per_hour=0.0, watts=0.0)))  # nothing costs anything: still a picture
