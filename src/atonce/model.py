"""ConsistencyModel: a network and its preconditioning behind one call, x0 = model(x, sigma), with sampling beside it."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atonce.core.averages import known_as
from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.core.records import Record
from atonce.core.streams import Stream, normal
from atonce.data.limits import check_memory
from atonce.model_config import Guidance as Guidance
from atonce.model_config import (
    Kind,
    Sampler,
    check_noise,
    check_to,
    checked_labels,
    default_batch,
    drawn_labels,
    guidance_scale,
    noise_keys,
    refuse_no_class,
    sample_times,
    student_for,
)
from atonce.model_config import ModelConfig as ModelConfig
from atonce.networks.build import build
from atonce.sampling.guidance import guided
from atonce.sampling.jump import jump
from atonce.sampling.ode import Churn, integrate
from atonce.sampling.restart import restart


class ConsistencyModel(nn.Module):
    """A trained one-step generator (or a denoiser, or a flow map) in variance-exploding terms: x = y + sigma z.

    Args:
        config: Shape, preconditioning and ranges.
        network: The raw network F; made from ``config`` when not given.
        ema: Further sets of weights by name, as state dicts of the network.
        card: Facts for the model card (description, recipe, data, licence, ...).
        records: Results of evaluations.
    """

    def __init__(
        self,
        config: ModelConfig,
        network: nn.Module | None = None,
        ema: Mapping[str, Mapping[str, Tensor]] | None = None,
        card: Mapping[str, Any] | None = None,
        records: Sequence[Record] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network if network is not None else build(config.network)
        self.card: dict[str, Any] = dict(card or {})
        self.records: list[Record] = list(records)
        self._ema = {name: dict(state) for name, state in (ema or {}).items()}
        self._ema_networks: dict[str, nn.Module] = {}
        self._lock = threading.Lock()
        self.requires_grad_(False)
        self.eval()

    # ---- what a caller may ask

    @property
    def kind(self) -> Kind:
        """What the call gives: the end of the trajectory, any point of it, or the mean of the data."""
        return self.config.kind

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the state x."""
        net = self.config.network
        return (net.image_channels, net.size, net.size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of decoded images; equal to :attr:`shape` unless the model is latent."""
        return self.shape

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, or ``None`` for an unconditional model."""
        if self.config.labels is not None:
            return list(self.config.labels)
        return [str(i) for i in range(self.config.network.labels)] if self.config.network.labels else None

    @property
    def sigma_min(self) -> float:
        """Smallest noise level of training."""
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        """Noise level at which samples start."""
        return self.config.sigma_max

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data that the preconditioning assumes."""
        return self.config.preconditioning.sigma_data

    @property
    def sigma_end(self) -> float:
        """Noise level of the call's results."""
        return self.config.preconditioning.sigma_end

    @property
    def clip(self) -> tuple[float, float] | None:
        """Range of the data, or ``None``."""
        return self.config.clip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights and of the network's arithmetic."""
        return next(self.network.parameters()).dtype

    @property
    def ema_names(self) -> list[str]:
        """Names of the sets of weights that :meth:`sample` can use; the first is the default, where its name is known."""
        default = self.card.get("ema")
        return [*([default] if isinstance(default, str) else []), *self._ema]

    def extra_repr(self) -> str:
        """Facts shown by ``repr``."""
        levels = f"sigma=({self.sigma_end:g}, {self.sigma_max:g})"
        return f"kind={self.kind}, shape={self.shape}, labels={len(self.labels or [])}, {levels}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConsistencyModel:
        with self._lock:
            self._ema_networks.clear()  # copies follow the weights to a new device or precision when next used
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> ConsistencyModel:
        return ConsistencyModel(self.config, copy.deepcopy(self.network, memo), self._ema, self.card, self.records)

    # ---- the call

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        label: Tensor | int | None = None,
        *,
        to: float | None = None,
        guidance: float | Tensor | None = None,
    ) -> Tensor:
        """x0 = f(x, sigma): the origin of the trajectory through x (or what :attr:`kind` says).

        Args:
            x: Noisy images [B, C, H, W].
            sigma: Noise level of x: a number or a tensor [B].
            label: Class of each image, int64 [B] or one int; negative means "no class".
            to: Noise level to map to; only flow maps can.
            guidance: Scale w of D_u + w (D_c - D_u), one number or [B], for models that can (see :class:`Guidance`).

        Returns:
            Images [B, C, H, W] in the dtype of ``x``.

        Raises:
            InputError: Shapes, labels or options that this model cannot honour.
        """
        if to is not None:
            check_to(to, self.kind, self.sigma_end, torch.as_tensor(sigma))
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise InputError(f"x has shape {tuple(x.shape)}, this model takes [B, {', '.join(map(str, self.shape))}]")
        labels = self._labels(label, x.shape[0])
        return self._f(self.network, x, sigma, labels, guidance_scale(self.config.guidance, guidance, labels), to=to)

    def _levels(self, sigma: float | Tensor, like: Tensor, largest: float | None) -> Tensor:
        """Noise levels as a tensor: one, or one for each image of ``like`` [B, C, H, W], of its type and on its device."""
        s = torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1)
        if s.numel() not in (1, like.shape[0]):
            raise InputError(f"sigma has {s.numel()} values for {like.shape[0]} images: give one number or one for each image")
        if not isinstance(sigma, Tensor) and not self.sigma_end <= sigma <= (largest or self.sigma_max) * (1 + 1e-6):
            raise InputError(f"sigma is {sigma:g}, this model knows {self.sigma_end:g} to {self.sigma_max:g}")
        return s

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
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        s = self._levels(sigma, work, largest)
        if (label is not None or scale is not None) and s.numel() == 1:
            s = s.expand(x.shape[0])
        dtype = next(network.parameters()).dtype

        def call(x: Tensor, sigma: Tensor, label: Tensor | None, **told: Tensor) -> Tensor:
            return self.config.preconditioning(network, x, sigma, to=to, dtype=dtype, label=label, **told)

        if scale is None:
            out = call(work, s, label)
        elif self.config.network.guidance:
            out = call(
                work, s, label, guidance=torch.as_tensor(scale, dtype=torch.float32, device=work.device).expand(x.shape[0])
            )
        else:
            assert label is not None  # checked with the scale
            out = guided(call, work, s, label, scale)
        return out.to(x.dtype)

    def _labels(self, label: Tensor | Sequence[int] | int | None, n: int) -> Tensor | None:
        values = checked_labels(label, n, self.config.network.labels)
        return None if values is None else values.to(self.device)

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int = 1,
        seed: int = 0,
        *,
        first: int = 0,
        seeds: Sequence[int] | Tensor | None = None,
        noise: Tensor | None = None,
        labels: Tensor | Sequence[int] | int | None = None,
        guidance: float | None = None,
        sigmas: Sequence[float] | None = None,
        sampler: Sampler = "auto",
        ema: str | float | None = None,
        batch: int | None = None,
        churn: Churn | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> Tensor:
        """Generate images.

        The noise of image ``first + i`` at each step is a function of (seed, first + i, step), or of (seeds[i], step), drawn on
        the CPU; so shards made with ``first`` fit together exactly. No global random state is read or changed, and calls from
        several threads do not disturb each other.

        Args:
            n: Number of images.
            steps: Number of intervals. A consistency model makes one network call for each.
            seed: Seed of the noise and of labels that are not given.
            first: Index of the first image.
            seeds: One seed for each image, instead of ``seed`` and ``first``.
            noise: Unit normal noise [n, C, H, W] for the first step.
            labels: Classes (one, or one for each image); a conditional model draws them uniformly when not given.
            guidance: Scale w of D_u + w (D_c - D_u), for models that can (see :class:`Guidance`).
            sigmas: Starting noise levels of the intervals, descending, instead of the default; a closing ``sigma_end`` or 0 may
                stand at the end. They replace ``steps``.
            sampler: ``"auto"``; ``"restart"`` for consistency models; ``"jump"`` (usual) or ``"restart"`` for flow maps;
                ``"heun"`` or ``"euler"`` for denoisers.
            ema: Name of a set of weights (see :attr:`ema_names`), or the decay of an average. By default the first, or for a
                student of progressive distillation the one that has learnt as many steps as are asked for.
            batch: Images computed at once; default 256 on a GPU, 64 elsewhere.
            churn: Fresh noise that the solver of a denoiser adds on the way (Karras et al. 2022, Algorithm 2).
            callback: Called after each step with ``step``, ``sigma``, ``x0``, ``calls`` (of this batch), ``first``, ``done``.

        Returns:
            float32 [n, C, H, W] in [-1, 1] (where the model clips) on :attr:`device`.

        Raises:
            InputError: A value out of range, or an option this model does not have.
        """
        if churn is not None and self.kind != "denoiser":
            raise InputError(f"churn is for the solvers of denoisers, this is a {self.kind} model: leave it out")
        times = self._times(steps, sigmas, sampler)
        size = default_batch(self.device) if batch is None else whole(batch, "batch", 1)
        check_memory(whole(n, "n", 0) * 4 * math.prod(self.shape), f"{n:,} images", "ask for fewer at a time, with first=")
        index, keys = noise_keys(n, seed, first, seeds)
        check_noise(noise, (n, *self.shape))
        label = self._labels(labels, n)
        refuse_no_class(self.card, label)
        if label is None and self.config.network.labels:
            label = drawn_labels(keys, index, self.config.network.labels).to(self.device)
        scale = guidance_scale(self.config.guidance, guidance, label)
        twice = 2 if scale is not None and not self.config.network.guidance else 1
        intervals = len(times) - (self.kind == "denoiser")  # a denoiser's times hold the end of the last one too
        network = self._network(self.weights_for(ema, intervals, sigmas is not None))
        out = torch.empty((n, *self.shape), dtype=torch.float32, device=self.device)
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))

            def draw(step: int, part: slice = part) -> Tensor:
                if step == 0 and noise is not None:
                    return noise[part].to(self.device, torch.float32)
                z = normal(keys[part] if isinstance(keys, Tensor) else keys, index[part], self.shape, Stream.SAMPLE, step)
                return z.to(self.device)

            def report(info: dict[str, object], part: slice = part) -> None:
                if callback is not None:
                    calls = twice * int(info["calls"])  # type: ignore[call-overload]
                    done = part.stop if info["step"] == intervals - 1 else part.start
                    callback({**info, "calls": calls, "first": first + part.start, "done": done})

            rows = None if label is None else label[part]
            w = scale[part] if isinstance(scale, Tensor) else scale
            out[part] = self._sample_batch(network, draw, times, sampler, rows, w, churn, report)
        return out

    def _sample_batch(
        self,
        network: nn.Module,
        draw: Callable[[int], Tensor],
        times: Sequence[float],
        sampler: Sampler,
        label: Tensor | None,
        scale: float | Tensor | None,
        churn: Churn | None,
        report: Callable[[dict[str, object]], None],
    ) -> Tensor:
        largest = self.sigma_max * (2**0.5 if churn is not None else 1)  # churn raises the first level above the grid

        def f(x: Tensor, sigma: float, to: float | None = None) -> Tensor:
            return self._f(network, x, sigma, label, scale, largest, to)

        if self.kind == "flow_map" and sampler in ("auto", "jump"):
            return jump(f, draw, times, self.sigma_end, self.clip, report)
        if self.kind != "denoiser":
            return restart(f, draw, times, self.sigma_end, self.clip, report)
        order = 1 if "euler" in (sampler, self.config.sampler if sampler == "auto" else "") else 2
        # The state of the solver is kept in float64 (EDM, section 3); the network runs in its own precision.
        x, _ = integrate(
            lambda x, s: f(x.float(), s).double(),
            draw(0).double() * times[0],
            times,
            order,
            report,
            churn=churn,
            noise=lambda step: draw(step + 1).double(),
        )
        return (x if self.clip is None else x.clamp(*self.clip)).float()

    def _times(self, steps: int, sigmas: Sequence[float] | None, sampler: str) -> list[float]:
        return sample_times(self.config, steps, sigmas, sampler)

    def weights_for(self, ema: str | float | None, steps: int = 1, own_times: bool = False) -> str | None:
        """The set of weights that :meth:`sample` uses.

        Args:
            ema: As there.
            steps: Intervals.
            own_times: Whether time points are given.

        Returns:
            A name among the further sets; ``None`` for the model's own weights.

        Raises:
            InputError: There is no such set, or no student of progressive distillation has learnt this number of steps.
        """
        if ema is None:
            return student_for(self.card, self._ema, steps, own_times)
        name = known_as(ema, self.ema_names)
        if name is None:
            raise InputError(f"ema {ema!r} is not in this model; present: {', '.join(self.ema_names) or 'none'}")
        return None if name == self.card.get("ema") else name

    def _network(self, ema: str | float | None) -> nn.Module:
        name = None if ema is None else self.weights_for(ema)
        if name is None:
            return self.network
        with self._lock:
            if name not in self._ema_networks:
                network = copy.deepcopy(self.network)
                network.load_state_dict(self._ema[name])
                self._ema_networks[name] = network
            return self._ema_networks[name]

    # ---- files

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a model folder: config.json, model.safetensors, README.md and records (see :mod:`atonce.model_files`)."""
        from atonce.model_files import save_model

        save_model(self, folder)

    @staticmethod
    def from_pretrained(folder_or_hub_id: Path | str) -> ConsistencyModel:
        """Read a model folder, or fetch one from the Hugging Face hub (see :mod:`atonce.model_files`)."""
        from atonce.model_files import load_model

        return load_model(folder_or_hub_id)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model folder to the Hugging Face hub and return its address (see :mod:`atonce.model_files`)."""
        from atonce.model_files import push_model

        return push_model(self, repo_id, private=private, token=token)
