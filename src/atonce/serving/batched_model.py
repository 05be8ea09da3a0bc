"""A model like any other, whose network calls wait in an engine's queue and are made together with everyone else's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from atonce.model import ConsistencyModel
from atonce.sampling.guidance import guided
from atonce.serving.session import Session
from atonce.serving.work import Given

if TYPE_CHECKING:
    from concurrent.futures import Future


class Queue(Protocol):
    """What takes calls."""

    def enqueue(self, work: Given) -> Future[Tensor]:
        """Let a call wait for its turn."""


class _Named(nn.Module):
    """Stands for a set of weights that the engine keeps."""

    def __init__(self, ema: str | None) -> None:
        super().__init__()
        self.ema = ema


class BatchedModel(ConsistencyModel):
    """The same weights behind the same calls; sampling and editing work on it unchanged, from any thread.

    Args:
        model: The model.
        queue: The engine.
        session: What its calls belong to; ``None``: each is by itself.
    """

    def __init__(self, model: ConsistencyModel, queue: Queue, session: Session | None = None) -> None:
        super().__init__(model.config, model.network, model._ema, model.card, model.records)
        self._queue, self._session = queue, session

    def of(self, session: Session) -> BatchedModel:
        """The same model for the calls of one session; it shares everything else."""
        model = copy.copy(self)
        model._session = session
        return model

    def _network(self, ema: str | float | None) -> nn.Module:
        name = None if ema is None else self.weights_for(ema)
        return self.network if name is None else _Named(name)

    def _f(
        self,
        network: nn.Module,
        x: Tensor,
        sigma: float | Tensor,
        label: Tensor | None,
        scale: float | Tensor | None = None,
        largest: float | None = None,
        to: float | None = None,
    ) -> Tensor:
        n, ema = x.shape[0], network.ema if isinstance(network, _Named) else None
        s = self._levels(sigma, x.float(), largest)
        if n == 0:
            return x.clone()
        session = self._session or Session(kind="call")

        def call(x: Tensor, sigma: Tensor, label: Tensor | None, scale: Tensor | None = None) -> Tensor:
            work = Given(
                n=x.shape[0],
                calls=1,
                label=label,
                scale=scale,
                twice=False,
                weights=ema,
                lane=session.lane,
                kind=session.kind,
                deadline=session.deadline,
                session=self._session,
                x=x,
                sigma=sigma,
                out=torch.empty_like(x),
                end=to or 0.0,
            )
            return self._queue.enqueue(work).result()

        work, levels = x.detach().to(torch.float32), s.expand(n)
        session.rows = n
        if scale is None:
            out = call(work, levels, label)
        elif self.config.network.guidance:
            told = torch.as_tensor(scale, dtype=torch.float32, device=x.device).expand(n)
            out = call(work, levels, label, told)
        else:
            assert label is not None  # checked with the scale
            out = guided(call, work, levels, label, scale)
        return out.to(x.dtype)
