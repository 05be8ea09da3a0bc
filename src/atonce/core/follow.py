"""What an edit tells by its callback, put together: levels, calls, classes, and how far it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


class Follow:
    """A callback for an edit that remembers what was done.

    Args:
        count: Results that are made.
        steps: Network calls that each will need, as far as one knows.
        first: Index of the first of them.

    Attributes:
        sigmas: Noise levels of the steps.
        calls: Network calls for each result.
        clamped: Largest change of the known part by the last clamp to the range of the data.
        labels: The class of each result, as it was given or guessed; empty for models without classes.
        done: Results that are done, parts of them included, as far as one can say.
    """

    def __init__(self, count: int, steps: int = 1, first: int = 0) -> None:
        self.count, self.steps, self.first = count, steps, first
        self.sigmas: list[float] = []
        self.calls = 0
        self.clamped = 0.0
        self.labels: list[int] = []
        self.done = 0.0
        self._window, self._earlier = 0, 0

    def __call__(self, info: dict[str, Any]) -> None:
        """Take in what an edit tells after each step."""
        window, windows = info.get("window", 0), info.get("windows", 1)
        begin = info["first"] - self.first
        if begin == 0:
            if window != self._window:
                self._window, self._earlier = window, self.calls
            self.sigmas = [*self.sigmas[: info["step"]], float(info["sigma"])]
            self.calls = self._earlier + info["calls"]
        if window == 0 and info["step"] == 0 and info["labels"] is not None:
            self.labels += info["labels"].tolist()
        self.clamped = max(self.clamped, float(info.get("clamped", 0.0)))
        part = len(info["x0"]) * min(1.0, (info["step"] + 1) / self.steps)
        self.done = min((window * self.count + begin + part) / windows, self.count)


def steps_of(function: Callable[..., Any], steps: int | None, sigmas: Sequence[float] | None) -> int:
    """Network calls for each result of an edit: those that were asked for, else the function's default."""
    return steps or len(sigmas or ()) or int(inspect.signature(function).parameters["steps"].default)
