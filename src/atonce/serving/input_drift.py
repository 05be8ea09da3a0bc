"""Whether the pictures that people send for edits are still of the kind they were: numbers about them, never the pictures.

Of each picture a few numbers are kept. The last :data:`WINDOW` of them are compared with what the model's card says about its
data, or else with the :data:`BASELINE` before them, by the population stability index (PSI: the sum of (p - q) ln(p / q) over
tenths of the baseline) and Kolmogorov and Smirnov's test. By habit of the credit business, where the index comes from, 0.1 is a
change worth a look and 0.25 a large one.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

BASELINE, WINDOW = 1000, 200
"""Pictures that a comparison rests on: the older ones, and the last ones."""
LEAST = 300
"""Pictures before the last ones that are enough for a beginning."""
EVERY = 50
"""A comparison is made when so many pictures are new."""
LARGE, SURE = 0.25, 1e-3
"""An alarm needs an index above the one, beyond what chance adds, and a test below the other (over all statistics together)."""
CARD_KEY = "input_statistics"
"""Where a model's card keeps what :func:`data_statistics` gives."""
_CELLS = 4  # the cheap feature: mean brightness of 4 x 4 cells
_BINS = 10
_POINTS = 201  # quantiles of the data that a card keeps

Array = NDArray[np.float64]


def facts(images: Tensor) -> dict[str, float]:
    """Numbers about a picture that came in, or the mean over several.

    Args:
        images: [C, H, W] or [B, C, H, W]; uint8, or float in [-1, 1].

    Returns:
        ``mean`` and ``spread`` of the brightness (0 to 1), ``sharpness`` (mean step between neighbours), ``grey`` (share of
        pixels without colour; RGB only), and the brightness of 4 x 4 cells (``cell0`` ...), of which only sums are kept.
    """
    x = images.detach().cpu()
    x = (x.double() / 255 if x.dtype == torch.uint8 else (x.double() + 1) / 2).clamp(0, 1).reshape(-1, *images.shape[-3:])
    light = x.mean(1, keepdim=True)
    steps = [light.diff(dim=d).abs().mean() for d in (2, 3) if light.shape[d] > 1]
    found = {"mean": float(light.mean()), "spread": float(light.flatten(1).std(1, unbiased=False).mean())}
    found["sharpness"] = float(torch.stack(steps).mean()) if steps else 0.0
    if x.shape[1] == 3:
        found["grey"] = float(((x.amax(1) - x.amin(1)) < 2 / 255).double().mean())
    cells = F.adaptive_avg_pool2d(light, _CELLS).mean(0).flatten()
    return found | {f"cell{i}": float(value) for i, value in enumerate(cells)}


def data_statistics(images: Tensor) -> dict[str, list[float]]:
    """What a model's card can say about its data, for the watch over the input: no picture, only quantiles and moments.

    Args:
        images: uint8 [N, C, H, W], a few hundred at least.

    Returns:
        For the card's entry ``input_statistics``.
    """
    rows = [facts(image) for image in images]
    cells = np.array([_cells(row) for row in rows])
    centre, scale = cells.mean(0), np.maximum(cells.std(0), 1e-3)
    names = [name for name in rows[0] if not name.startswith("cell")]
    values = {name: np.array([row[name] for row in rows]) for name in names}
    values["distance"] = np.sqrt((((cells - centre) / scale) ** 2).mean(1))
    at = np.linspace(0, 1, _POINTS)
    out = {name: np.quantile(value, at).round(6).tolist() for name, value in values.items()}
    return out | {"cell_means": centre.round(6).tolist(), "cell_scales": scale.round(6).tolist()}


@dataclasses.dataclass(frozen=True)
class Drift:
    """A comparison of the last pictures with those before.

    Attributes:
        index: The population stability index of each statistic.
        exceeded: Statistics that changed, surely and by much.
        alarm: Whether that was so twice in a row.
    """

    index: Mapping[str, float]
    exceeded: tuple[str, ...]
    alarm: bool


class InputDrift:
    """Keeps numbers about the pictures of each model, and compares."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}

    def expect(self, model: str, card: Mapping[str, Any]) -> bool:
        """Compare a model's pictures with its data, if its card says something about them.

        Args:
            model: Its name.
            card: Its card.

        Returns:
            Whether the card does; otherwise the pictures are compared with those before them.
        """
        told = card.get(CARD_KEY)
        with self._lock:
            try:
                fixed = {str(k): np.array(v, np.float64) for k, v in told.items()} if isinstance(told, Mapping) else None
                self._models[model] = _Model(fixed)
            except (TypeError, ValueError, LookupError):
                fixed, self._models[model] = None, _Model(None)
        return fixed is not None

    def add(self, model: str, statistics: Mapping[str, float]) -> Drift | None:
        """Take in the numbers about one picture.

        Args:
            model: The model that is to edit it.
            statistics: What :func:`facts` gives.

        Returns:
            A comparison, where one was due.
        """
        if not all(math.isfinite(value) for value in statistics.values()):
            return None
        with self._lock:
            return self._models.setdefault(model, _Model(None)).add(statistics)


class _Model:
    def __init__(self, fixed: Mapping[str, Array] | None) -> None:
        self.fixed = fixed
        self.recent: dict[str, deque[float]] = {}
        self.older: dict[str, deque[float]] = {}
        self.new = 0
        self.before: frozenset[str] = frozenset()
        self.alarm = False
        # What a distance is measured from: of the data, or of a stretch of pictures; nothing of a single picture is kept.
        self.centre: tuple[Array, Array] | None = None if fixed is None else (fixed["cell_means"], fixed["cell_scales"])
        self.count, self.sums = 0, np.zeros((2, _CELLS**2))

    def add(self, statistics: Mapping[str, float]) -> Drift | None:
        values = {name: value for name, value in statistics.items() if not name.startswith("cell")}
        cells = _cells(statistics)
        if cells.size == _CELLS**2:
            if self.centre is not None:
                values["distance"] = float(np.sqrt((((cells - self.centre[0]) / self.centre[1]) ** 2).mean()))
            self._centre(cells)
        for name, value in values.items():
            recent = self.recent.setdefault(name, deque())
            recent.append(value)
            if len(recent) > WINDOW:
                self.older.setdefault(name, deque(maxlen=BASELINE)).append(recent.popleft())
        self.new += 1
        if self.new < EVERY:
            return None
        self.new = 0
        return self._compare()

    def _centre(self, cells: Array) -> None:
        """Renew what distances are measured from once in a baseline; older distances, from elsewhere, go."""
        if self.fixed is not None:
            return
        self.count, self.sums = self.count + 1, self.sums + np.stack([cells, cells**2])
        if self.count < (LEAST // 2 if self.centre is None else BASELINE + WINDOW):
            return
        mean, square = self.sums / self.count
        self.centre = mean, np.sqrt(np.maximum(square - mean**2, 1e-6))
        self.count, self.sums = 0, np.zeros((2, _CELLS**2))
        for kept in (self.recent, self.older):
            kept.pop("distance", None)

    def _compare(self) -> Drift | None:
        index: dict[str, float] = {}
        exceeded = []
        for name, recent in self.recent.items():
            older: Sequence[float] | Array = self.older.get(name, ())
            if self.fixed is not None:
                older = self.fixed.get(name, np.empty(0))
            enough = _POINTS // 2 if self.fixed is not None else LEAST
            if len(recent) < WINDOW or len(older) < enough:
                continue
            now, then = np.array(recent), np.array(older)
            # Quantiles of all data stand for many pictures; their number bounds what chance may add only from above.
            index[name], chance = stability_index(now, then)
            sure = stats.ks_2samp(now, then, method="asymp").pvalue < SURE / max(1, len(self.recent))
            if sure and index[name] - chance > LARGE:
                exceeded.append(name)
        if not index:
            return None
        again = frozenset(exceeded) & self.before
        self.alarm = bool(again) or (self.alarm and bool(exceeded))
        self.before = frozenset(exceeded)
        return Drift(index, tuple(exceeded), self.alarm)


def stability_index(now: Array, then: Array) -> tuple[float, float]:
    """The population stability index of two samples, in tenths of the older one.

    Args:
        now: The newer values [n].
        then: The older values [m].

    Returns:
        The index, and about what chance alone gives for samples of these sizes: (bins - 1) (1/n + 1/m).
    """
    edges = np.unique(np.quantile(then, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1) for each in (now, then)]
    p, q = ((count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts)
    return float(((p - q) * np.log(p / q)).sum()), len(edges) * (1 / len(now) + 1 / len(then))


def _cells(statistics: Mapping[str, float]) -> Array:
    return np.array([statistics[f"cell{i}"] for i in range(_CELLS**2) if f"cell{i}" in statistics], np.float64)
