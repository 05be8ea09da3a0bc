"""Requests on their way: what the rows of each need for their next network call, and what they do with its result.

A row is one image. A piece is a run of rows of one request that stand at the same call, so that they are handled by the same
few tensor operations. Only the engine's worker touches a request's state once it has been accepted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel
from atonce.model_config import guidance_scale, noise_keys
from atonce.serving.rows import Ask, Lane, signed

if TYPE_CHECKING:
    from atonce.serving.session import Session


@dataclass(eq=False)
class Work(ABC):
    """One request.

    Attributes:
        n: Rows.
        calls: Network calls of each row.
        label: Class of each row, int64 [n], for networks with classes; negative for no class; ``None`` until it is drawn.
        scale: Scale of guidance of each row, float32 [n], or ``None``.
        twice: Whether each row needs a second one without its class beside it (free guidance).
        weights: Name of the set of weights.
        keys: Seed of each row, int64 [n], where something of it is drawn.
        index: Index of each row, int64 [n], likewise.
        lane: Who goes first.
        kind: What the images are for.
        deadline: Moment by which the first call must begin, or ``None``.
        progress: Told how many images are finished.
        session: The edit that this call is part of.
        accepted: Moment of acceptance.
        begun: Whether a call of it has begun.
        finished: Rows that need no further call.
        rest: What is more than a full call of it, until that has begun.
        several: Whether more calls will come: of its rows, or of the edit that it is part of.
        future: Where the result goes.
    """

    n: int
    calls: int
    label: Tensor | None
    scale: Tensor | None
    twice: bool
    weights: str | None
    keys: Tensor | None = None
    index: Tensor | None = None
    lane: Lane = "interactive"
    kind: str = "generate"
    deadline: float | None = None
    progress: Callable[[int], None] | None = None
    session: Session | None = None
    accepted: float = 0.0
    begun: bool = False
    finished: int = 0
    rest: Piece | None = None
    several: bool = False
    future: Future[Tensor] = field(default_factory=Future)

    @property
    def width(self) -> int:
        """Rows of the network for one row of the request."""
        return 2 if self.twice else 1

    @property
    def owner(self) -> object:
        """What keeps its place in the queue for further calls: the edit that it is part of, or itself."""
        return self if self.session is None else self.session

    @abstractmethod
    def need(self, rows: slice, step: int) -> tuple[Tensor | None, float, float | Tensor]:
        """What goes into call ``step``: images [b, C, H, W] or ``None``, the level of noise to add, and sigma."""

    def to(self, step: int) -> float:
        """The noise level that call ``step`` maps to, for flow maps; 0 is the end."""
        return 0.0

    @abstractmethod
    def take(self, rows: slice, step: int, out: Tensor) -> None:
        """Use what call ``step`` gave, [b, C, H, W]."""

    @abstractmethod
    def result(self) -> Tensor:
        """The finished images."""


@dataclass(eq=False)
class Piece:
    """Rows ``start`` to ``stop`` of a request, which wait for call number ``step``."""

    work: Work
    start: int
    stop: int
    step: int = 0

    @property
    def rows(self) -> slice:
        """The rows."""
        return slice(self.start, self.stop)

    @property
    def count(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def cost(self) -> int:
        """Rows of the network that they take."""
        return self.count * self.work.width

    def split(self, count: int) -> tuple[Piece, Piece]:
        """The first ``count`` rows, and the others."""
        middle = self.start + count
        return Piece(self.work, self.start, middle, self.step), Piece(self.work, middle, self.stop, self.step)


@dataclass(eq=False)
class Restarts(Work):
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1) by rows; noise is drawn for a whole call."""

    times: tuple[float, ...] = ()
    sigma_end: float = 0.0
    clip: tuple[float, float] | None = None
    out: Tensor = field(default_factory=lambda: torch.empty(0))

    def need(self, rows: slice, step: int) -> tuple[Tensor | None, float, float | Tensor]:
        """As in :class:`Work`."""
        sigma = self.times[step]
        if step == 0:
            return None, sigma, sigma
        return self.out[rows], (sigma**2 - self.sigma_end**2) ** 0.5, sigma

    def take(self, rows: slice, step: int, out: Tensor) -> None:
        """As in :class:`Work`."""
        self.out[rows] = out if self.clip is None else out.clamp(*self.clip)

    def result(self) -> Tensor:
        """As in :class:`Work`."""
        return self.out.cpu()


@dataclass(eq=False)
class Jumps(Restarts):
    """Sampling with a flow map by rows: each call goes on to where the next one begins (:mod:`atonce.sampling.jump`)."""

    def need(self, rows: slice, step: int) -> tuple[Tensor | None, float, float | Tensor]:
        """As in :class:`Work`."""
        sigma = self.times[step]
        return (None, sigma, sigma) if step == 0 else (self.out[rows], 0.0, sigma)

    def to(self, step: int) -> float:
        """As in :class:`Work`."""
        return (*self.times[1:], self.sigma_end)[step]

    def take(self, rows: slice, step: int, out: Tensor) -> None:
        """As in :class:`Work`: only images are clamped, not the noisy states on the way."""
        last = step == len(self.times) - 1
        self.out[rows] = out.clamp(*self.clip) if last and self.clip is not None else out


@dataclass(eq=False)
class Solver(Work):
    """The ODE of a denoiser by rows (Karras et al. 2022, Algorithm 1; Euler where order is 1), its state in float64.

    Call 2 i is the slope where interval i begins, call 2 i + 1 that at its end; the last interval ends at 0 and has one call.
    """

    times: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    order: int = 2
    clip: tuple[float, float] | None = None
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    slope: Tensor = field(default_factory=lambda: torch.empty(0))
    end: Tensor = field(default_factory=lambda: torch.empty(0))

    def need(self, rows: slice, step: int) -> tuple[Tensor | None, float, float | Tensor]:
        """As in :class:`Work`."""
        i, second = divmod(step, self.order)
        if step == 0 and self.keys is not None and self.index is not None:
            z = normal(self.keys[rows], self.index[rows], self.shape, Stream.SAMPLE, 0)
            self.x[rows] = z.double() * self.times[0]
        return (self.end if second else self.x)[rows].float(), 0.0, self.times[i + second]

    def take(self, rows: slice, step: int, out: Tensor) -> None:
        """As in :class:`Work`."""
        i, second = divmod(step, self.order)
        sigma, to, d, x = self.times[i], self.times[i + 1], out.double(), self.x[rows]
        if second:
            slope_end = (self.end[rows] - d) / to
            self.x[rows] = x + (to - sigma) * 0.5 * (self.slope[rows] + slope_end)
            return
        slope = (x - d) / sigma
        end = x + (to - sigma) * slope
        if self.order == 2 and to > 0:
            self.slope[rows], self.end[rows] = slope, end
        else:
            self.x[rows] = end

    def result(self) -> Tensor:
        """As in :class:`Work`."""
        return (self.x if self.clip is None else self.x.clamp(*self.clip)).float().cpu()


@dataclass(eq=False)
class Given(Work):
    """One call on given images: a step of an algorithm that runs in its caller's thread."""

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    sigma: Tensor = field(default_factory=lambda: torch.empty(0))  # float32 [n]
    out: Tensor = field(default_factory=lambda: torch.empty(0))
    end: float = 0.0

    def need(self, rows: slice, step: int) -> tuple[Tensor | None, float, float | Tensor]:
        """As in :class:`Work`."""
        return self.x[rows], 0.0, self.sigma[rows]

    def to(self, step: int) -> float:
        """As in :class:`Work`."""
        return self.end

    def take(self, rows: slice, step: int, out: Tensor) -> None:
        """As in :class:`Work`."""
        self.out[rows] = out

    def result(self) -> Tensor:
        """As in :class:`Work`."""
        return self.out


def work_of(model: ConsistencyModel, ask: Ask) -> Work:
    """The request for a generation, in its first state. Nothing has been computed: noise and labels are drawn when it begins.

    Args:
        model: The model.
        ask: What it is to make, checked.

    Returns:
        A :class:`Restarts`, :class:`Jumps` for a flow map, or a :class:`Solver` for a denoiser.
    """
    config, device = model.config, model.device
    index, keys = noise_keys(ask.n, ask.seed, ask.first, ask.seeds)
    if not isinstance(keys, Tensor):
        keys = torch.full((ask.n,), signed(keys), dtype=torch.int64)
    label = None if ask.labels is None else torch.tensor(ask.labels, dtype=torch.int64)
    drawn = torch.zeros(ask.n, dtype=torch.int64) if config.network.labels else None  # stands for those that will be
    scale = guidance_scale(config.guidance, ask.guidance, drawn if label is None else label)
    twice = scale is not None and not config.network.guidance
    scales = None if scale is None else torch.as_tensor(scale, dtype=torch.float32).expand(ask.n).to(device)
    label, keys, index = None if label is None else label.to(device), keys.to(device), index.to(device)
    shape = (ask.n, *model.shape)
    if model.kind != "denoiser":
        return (Jumps if model.kind == "flow_map" else Restarts)(
            n=ask.n,
            calls=len(ask.sigmas),
            label=label,
            scale=scales,
            twice=twice,
            weights=ask.ema,
            keys=keys,
            index=index,
            times=ask.sigmas,
            sigma_end=model.sigma_end,
            clip=model.clip,
            out=torch.empty(shape, dtype=torch.float32, device=device),
        )
    order = 1 if config.sampler == "euler" else 2
    x = torch.empty(shape, dtype=torch.float64, device=device)
    return Solver(
        n=ask.n,
        calls=order * len(ask.sigmas) - (order - 1),
        label=label,
        scale=scales,
        twice=twice,
        weights=ask.ema,
        keys=keys,
        index=index,
        times=(*ask.sigmas, 0.0),
        shape=model.shape,
        order=order,
        clip=model.clip,
        x=x,
        slope=torch.empty_like(x) if order == 2 else x,
        end=torch.empty_like(x) if order == 2 else x,
    )
