"""Samples of one model at many time points: from the same noise each time, and no step computed twice."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.core.streams import Stream, normal
from atonce.data.limits import check_memory
from atonce.model import ConsistencyModel
from atonce.model_config import checked_labels, drawn_labels, guidance_scale
from atonce.sampling.jump import jump
from atonce.sampling.restart import restart
from atonce.sampling.times import check_times


class SharedNoise:
    """Makes the images that ``model.sample(n, seed=seed, sigmas=...)`` makes, for one choice of time points after another.

    What a step gives depends on the time points up to it alone. So the results of the first steps are kept, and choices that
    begin alike cost the network calls of what differs: two-step choices cost one call each.

    Args:
        model: A consistency model or a flow map.
        n: Number of images.
        seed: Seed of the noise, and of labels that are not given.
        labels: Classes (one, or one for each image); drawn as :meth:`ConsistencyModel.sample` draws them when not given.
        guidance: Scale, as for :meth:`ConsistencyModel.sample`.
        batch: Images computed at once; default 256.
        memory: Bytes that kept steps and noise may take.

    Attributes:
        calls: Network calls for each image that were made so far.
        each: Network calls of one step: two where guidance combines two results.

    Raises:
        InputError: The labels or the guidance do not fit the model.
        DataError: So many images do not fit into the memory.
    """

    def __init__(
        self,
        model: ConsistencyModel,
        n: int,
        seed: int = 0,
        *,
        labels: Any = None,
        guidance: float | None = None,
        batch: int | None = None,
        memory: int = 1 << 30,
    ) -> None:
        self.model, self.n, self.seed, self.guidance, self.memory = model, n, seed, guidance, memory
        self.batch = batch or 256
        self.calls = 0
        check_room(n, model.shape)
        classes = model.config.network.labels
        self.labels = checked_labels(labels, n, classes)
        if self.labels is None and classes:
            self.labels = drawn_labels(seed, torch.arange(n), classes)
        scale = guidance_scale(model.config.guidance, guidance, self.labels)
        self.each = 1 if scale is None or model.config.network.guidance else 2
        self._kept: OrderedDict[Any, Tensor] = OrderedDict()  # x0 after the steps of a tuple of sigmas; noise of a step number

    @torch.no_grad()
    def images(self, sigmas: Sequence[float]) -> Tensor:
        """The images that restarts at these time points give.

        Args:
            sigmas: Starting noise levels of the intervals, descending.

        Returns:
            uint8 [n, C, H, W] on the CPU.

        Raises:
            InputError: The time points do not fit the model, or it gives values that are not finite.
        """
        times = tuple(check_times(sigmas, self.model.sigma_end, self.model.sigma_max))
        skip = max((k for k in range(1, len(times)) if times[:k] in self._kept), default=0)
        known = self._kept.get(times[:skip])
        if known is not None:
            self._kept.move_to_end(times[:skip])
        made = torch.empty((self.n, *self.model.shape), dtype=torch.uint8)
        fits = self._fits()
        fresh: dict[int, list[Tensor]] = {k: [] for k in range(skip + 1, len(times))} if fits else {}
        noise = {k: self._noise(k) for k in range(skip, len(times))} if fits else {}
        for start in range(0, self.n, self.batch):
            rows = slice(start, min(start + self.batch, self.n))
            x0 = self._batch(times, rows, skip, None if known is None else known[rows], noise, fresh)
            if not bool(torch.isfinite(x0).all()):
                raise InputError(f"the model gave values that are not finite at time points {list(times)}: check its weights")
            made[rows] = to_uint8(x0).cpu()
        self.calls += self.each * (len(times) - skip)
        for k, parts in fresh.items():
            self._keep(times[:k], torch.cat(parts))
        return made

    def _batch(
        self,
        times: tuple[float, ...],
        rows: slice,
        skip: int,
        known: Tensor | None,
        noise: dict[int, Tensor],
        fresh: dict[int, list[Tensor]],
    ) -> Tensor:
        device, step = self.model.device, 0
        label = None if self.labels is None else self.labels[rows].to(device)

        def draw(k: int) -> Tensor:
            if k < skip:
                return torch.zeros((), device=device)  # of a step that is known: its input is not looked at
            if k in noise:
                return noise[k][rows].to(device)
            return normal(self.seed, torch.arange(rows.start, rows.stop), self.model.shape, Stream.SAMPLE, k).to(device)

        def f(x: Tensor, sigma: float, to: float | None = None) -> Tensor:
            nonlocal step
            step += 1
            if step <= skip:
                return known if known is not None and step == skip else x
            return self.model(x, sigma, label, to=to, guidance=self.guidance)

        def keep(info: dict[str, Any]) -> None:
            k = info["step"] + 1
            if k in fresh:
                fresh[k].append(info["x0"])

        sampler = jump if self.model.kind == "flow_map" else restart
        return sampler(f, draw, times, self.model.sigma_end, self.model.clip, keep)

    def _noise(self, step: int) -> Tensor:
        if step not in self._kept:
            self._keep(step, normal(self.seed, torch.arange(self.n), self.model.shape, Stream.SAMPLE, step))
        self._kept.move_to_end(step)
        return self._kept[step]

    def _fits(self) -> bool:
        """Whether at least the first step, its noise and those of one further step can be kept."""
        return 12 * self.n * math.prod(self.model.shape) <= self.memory

    def _keep(self, key: Any, value: Tensor) -> None:
        self._kept[key] = value
        while len(self._kept) > 1 and sum(v.numel() * v.element_size() for v in self._kept.values()) > self.memory:
            self._kept.popitem(last=False)


def check_room(n: int, shape: Sequence[int], sets: int = 1) -> None:
    """Refuse more samples than the memory can hold.

    Args:
        n: Number of images.
        shape: (C, H, W) of each.
        sets: How many times so many images, at one byte a value, are held at once; their labels are held once.

    Raises:
        DataError: They do not fit.
    """
    check_memory(n * (sets * math.prod(shape) + 16), f"{n:,} samples of shape {list(shape)}", "give a smaller n")
