"""One network call for the rows of several requests: what they need is gathered, and what comes out is given back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel
from atonce.model_config import drawn_labels
from atonce.serving.buckets import Rows
from atonce.serving.work import Piece


class Batch:
    """The rows of one call.

    Rows of free guidance come twice: with their class in their place, and without it at the end.

    Args:
        model: Whose shapes and device they have.
        pieces: The rows, all for one set of weights.
    """

    def __init__(self, model: ConsistencyModel, pieces: Sequence[Piece]) -> None:
        self.pieces = list(pieces)
        self.count = sum(piece.count for piece in pieces)
        self._twins = [at for at, piece in self._places() if piece.work.twice]
        self._scales = [piece.work.scale[piece.rows] for piece in pieces if piece.work.twice and piece.work.scale is not None]
        self.rows = self._gather(model)

    def _places(self) -> list[tuple[slice, Piece]]:
        places, start = [], 0
        for piece in self.pieces:
            places.append((slice(start, start + piece.count), piece))
            start += piece.count
        return places

    def _gather(self, model: ConsistencyModel) -> Rows:
        device, config = model.device, model.config.network
        x = torch.zeros((self.count, *model.shape), dtype=torch.float32, device=device)
        sigma: list[float] = []
        to: list[float] = []
        drawn: dict[int, list[tuple[slice, Piece, float]]] = {}
        for at, piece in self._places():
            base, level, s = piece.work.need(piece.rows, piece.step)
            sigma += s.tolist() if isinstance(s, Tensor) else [s] * piece.count
            to += [piece.work.to(piece.step)] * piece.count
            if base is not None:
                x[at] = base
            if level:
                drawn.setdefault(piece.step, []).append((at, piece, level))
        for step, places in drawn.items():
            _add_noise(x, step, places, model.shape)
        label = scale = None
        if config.labels:
            _draw_labels(self.pieces, config.labels)
            label = torch.cat([_labels(piece, device) for piece in self.pieces])
        if config.guidance:
            scale = torch.cat([_scales(piece, device) for piece in self.pieces])
        ends = torch.tensor(to, dtype=torch.float32, device=device) if model.config.preconditioning.second else None
        rows = Rows(x, torch.tensor(sigma, dtype=torch.float32, device=device), label, scale, ends)
        if not self._twins or label is None:
            return rows
        again = torch.cat([torch.arange(at.start, at.stop, device=device) for at in self._twins])
        none = torch.full_like(label[again], -1)
        twice = torch.cat([x, x[again]]), torch.cat([rows.sigma, rows.sigma[again]]), torch.cat([label, none])
        return Rows(*twice, to=None if ends is None else torch.cat([ends, ends[again]]))

    def give_back(self, out: Tensor) -> list[Piece]:
        """Give each request its rows.

        Args:
            out: What the network gave, [B, C, H, W].

        Returns:
            Pieces that got something that is not a finite number; they were given nothing.
        """
        found = out[: self.count]
        if self._twins:
            again = torch.cat([torch.arange(at.start, at.stop, device=out.device) for at in self._twins])
            without, w = out[self.count :], torch.cat(self._scales)[:, None, None, None]
            found = found.clone()
            found[again] = without + w * (found[again] - without)  # Ho and Salimans 2022, equation 6
        finite = torch.isfinite(found)
        whole = bool(finite.all())
        broken = []
        for at, piece in self._places():
            if whole or bool(finite[at].all()):
                piece.work.take(piece.rows, piece.step, found[at])
            else:
                broken.append(piece)
        return broken


def _add_noise(x: Tensor, step: int, places: list[tuple[slice, Piece, float]], shape: tuple[int, int, int]) -> None:
    """Draw the noise of all rows that stand at one step together, and add it."""
    works = [(piece.work, piece.rows) for _, piece, _ in places]
    keys = torch.cat([work.keys[rows] for work, rows in works if work.keys is not None])
    index = torch.cat([work.index[rows] for work, rows in works if work.index is not None])
    levels = [level for _, piece, level in places for _ in range(piece.count)]
    z = normal(keys, index, shape, Stream.SAMPLE, step)
    z *= torch.tensor(levels, dtype=torch.float32, device=x.device)[:, None, None, None]
    start = 0
    for at, piece, _ in places:
        x[at] += z[start : start + piece.count]
        start += piece.count


def _draw_labels(pieces: Sequence[Piece], classes: int) -> None:
    """Draw the classes of requests that give none, of all together, when the first of their rows is in a call."""
    works = [work for work in dict.fromkeys(piece.work for piece in pieces) if work.label is None and work.keys is not None]
    if not works:
        return
    keys = torch.cat([work.keys for work in works if work.keys is not None])
    index = torch.cat([work.index for work in works if work.index is not None])
    labels = drawn_labels(keys, index, classes).split([work.n for work in works])
    for work, label in zip(works, labels, strict=True):
        work.label = label


def _labels(piece: Piece, device: torch.device) -> Tensor:
    known = piece.work.label
    return torch.full((piece.count,), -1, dtype=torch.int64, device=device) if known is None else known[piece.rows]


def _scales(piece: Piece, device: torch.device) -> Tensor:
    known = piece.work.scale
    return torch.ones(piece.count, device=device) if known is None else known[piece.rows]
