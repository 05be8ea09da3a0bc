"""When the quality watch raises an alarm, and when it ends it."""

from __future__ import annotations

import dataclasses
import math

from scipy import stats
from torch import Tensor

from atonce.serving.watch_statistics import Reading

IN_A_ROW = 2
"""Rounds in a row that raise, or end, an alarm."""
REPEAT_LIMIT, REPEAT_FAR = 0.02, 0.05
"""How much the pixels of images that are asked for again may differ on average (of 1): far more than another backend rounds
differently, less than one sees."""


@dataclasses.dataclass
class Standing:
    """How one version stands.

    Attributes:
        rounds: Rounds so far.
        alarm: Whether it is held for degraded.
        bad: Rounds in a row beyond a limit.
        good: Rounds in a row without.
        readings: Of the last round.
        seed: Of the last round's images, so that they can be made again.
        at: When it ended, UTC, ISO 8601.
        problem: Why the last round failed, in a word; None where it did not.
    """

    rounds: int = 0
    alarm: bool = False
    bad: int = 0
    good: int = 0
    readings: dict[str, Reading] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    at: str | None = None
    problem: str | None = None

    def take(self, readings: dict[str, Reading]) -> bool:
        """Take in a round.

        Args:
            readings: What it found.

        Returns:
            Whether it raised the alarm just now.
        """
        self.rounds, self.readings, self.problem = self.rounds + 1, readings, None
        exceeded = any(each.exceeded for each in readings.values())
        self.bad, self.good = (self.bad + 1, 0) if exceeded else (0, self.good + 1)
        was = self.alarm
        if self.bad >= IN_A_ROW or any(each.far for each in readings.values()):
            self.alarm = True
        elif self.good >= IN_A_ROW:
            self.alarm = False
        return self.alarm and not was


def repeat_reading(off: Tensor) -> Reading:
    """The reading of images that were asked for again, of their mean differences [G]."""
    value, count = float(off.mean()), len(off)
    half = float(stats.t.ppf(0.975, count - 1)) * float(off.std()) / math.sqrt(count)
    return Reading(value, (max(0.0, value - half), value + half), None, REPEAT_LIMIT, value > REPEAT_LIMIT, value > REPEAT_FAR)
