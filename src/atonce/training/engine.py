"""The state of a run and its one step: draw, two passes, backward, optimiser, averages."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from atonce.core.distribution import World, all_sum
from atonce.core.errors import InputError, TrainingError
from atonce.core.streams import Stream, dropout_masks, normal, uniform
from atonce.data.augment import augment
from atonce.data.loader import DeviceData
from atonce.model import ConsistencyModel
from atonce.networks.build import NetworkConfig, build
from atonce.objectives import weights
from atonce.objectives.discrete import Function, Path, Terms, discrete, same_noise, teacher_step, to_data
from atonce.objectives.distances import Distance, huber_constant, l1, l2, pseudo_huber
from atonce.objectives.perceptual import open_distance
from atonce.objectives.progressive import truncated_snr, two_steps
from atonce.preconditioning import Preconditioning
from atonce.training.ema import Average, decay_at
from atonce.training.flat import FlatParameters
from atonce.training.options import Options, has_bf16
from atonce.training.recipe import DISTILLED, Recipe
from atonce.training.schedule import Stage, draw_middle, draw_pairs, learning_rate, stage_at, student_name
from atonce.training.teacher import denoise

BINS = 8  # of ln sigma, for what is logged by noise level
KEPT_STEPS = 4  # students of progressive distillation with at most so many steps are kept when the next one begins


class Engine:
    """A run between two files: weights, averages, optimiser, clock and meters.

    Args:
        recipe: A resolved recipe.
        data: Training images on the device.
        world: This process among the others.
        options: Settings of the machine.
        init: Weights to start from, as a state dict of the network.
        teacher: The diffusion model that is distilled, on the device, for the paths that have one.
        log: Where a line for people goes.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: DeviceData,
        world: World,
        options: Options,
        init: dict[str, Tensor] | None = None,
        teacher: ConsistencyModel | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not isinstance(recipe.network, NetworkConfig) or isinstance(recipe.sigma_data, str):
            raise InputError("the recipe is not resolved: call recipe.resolve with the shape of the data first")
        if recipe.path in DISTILLED and teacher is None:
            raise InputError(f"recipe field path is {recipe.path!r}, which needs a teacher: give one, or use path='same-noise'")
        self.recipe, self.data, self.world, self.options, self.log = recipe, data, world, options, log
        self.teacher = teacher
        self.device = world.device
        self.sigma_data = float(recipe.sigma_data)
        self.network = build(recipe.network, recipe.seed)
        if init is not None:
            self.network.load_state_dict(init)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.flat = FlatParameters(self.network)
        self.target: nn.Module | None = None
        if recipe.target in ("ema", "previous"):
            self.target = copy.deepcopy(self.network).requires_grad_(False)
            self.target_flat = FlatParameters(self.target)
        self.rates = recipe.averages
        self.averages = {name: Average(self.flat) for name in self.rates}
        self.kept: dict[str, Tensor] = {}  # weights of earlier students of progressive distillation, flat
        kind = torch.optim.RAdam if recipe.optimizer == "radam" else torch.optim.Adam
        self.optimizer = kind([self.flat.values], lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), foreach=False)
        end = recipe.sigma_min if recipe.preconditioning == "boundary" else 0.0
        self.preconditioning = Preconditioning(recipe.preconditioning, self.sigma_data, end)
        shape = (recipe.network.image_channels, recipe.network.size, recipe.network.size)
        self.distance = _distance(recipe, shape)
        self.mask_sizes = self.network.mask_sizes() if recipe.dropout else []
        self.images_seen = 0
        self.stage: Stage | None = None
        self.dtype = torch.float32
        self.meters = torch.zeros(BINS + 1, 3, dtype=torch.float64, device=self.device)
        self._forward: Callable[..., Tensor] = self.network
        self._target_forward: Callable[..., Tensor] = self.target if self.target is not None else self.network
        if options.compile:
            self._compile()

    # ---- one step

    def step(self) -> None:
        """One optimiser step on the next batch of the image clock."""
        recipe = self.recipe
        stage = stage_at(recipe, self.images_seen)
        if self.stage is None or self._key(stage) != self._key(self.stage):
            if recipe.target == "previous" and self.stage is not None:
                self._become_teacher(self.stage)
            self._choose_precision(stage)
        self.stage = stage
        self.flat.gradient.zero_()
        for index in self._microbatches():
            terms, t = self.terms(index, stage, self.dtype)
            (terms.loss.sum() / recipe.batch).backward()
            self._meter(terms, t)
        if self.world.size > 1:  # each process holds its images' share of the batch mean already
            self.flat.gradient.copy_(all_sum(self.flat.gradient))
        self.meters[BINS, 0] += torch.linalg.vector_norm(self.flat.gradient).double()
        self.meters[BINS, 1] += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.images_seen)
        self.optimizer.step()
        if recipe.target == "ema":
            # theta^- <- mu theta^- + (1 - mu) theta, after the optimiser's step: Song et al. 2023, Algorithm 2.
            with torch.no_grad():
                self.target_flat.values.lerp_(self.flat.values, 1.0 - stage.mu)
        self.images_seen += recipe.batch
        for name, rate in self.rates.items():
            beta = decay_at(rate, batch=recipe.batch, images_seen=self.images_seen, rampup=recipe.ema_rampup)
            self.averages[name].update(beta)

    def terms(self, index: Tensor, stage: Stage, dtype: torch.dtype) -> tuple[Terms, Tensor]:
        """Loss and distance of the images with the given global indices, and their noise levels t.

        Everything random is a function of (seed, index), so it does not matter which process or pass an image falls to.
        """
        recipe = self.recipe
        y, labels = self.data.batch(index)
        where = index.to(self.device)
        z = normal(recipe.seed, where, tuple(y.shape[1:]), Stream.NOISE)
        t, r = (s.to(self.device, torch.float32) for s in draw_pairs(recipe, stage, index))
        if not recipe.conditional:
            labels = None
        elif labels is not None and recipe.label_dropout:
            dropped = uniform(recipe.seed, where, 1, Stream.LABEL)[:, 0] < recipe.label_dropout
            labels = torch.where(dropped, -1, labels)
        condition: dict[str, Any] = {"dtype": dtype, "label": labels}
        if recipe.augment:
            y, condition["augment"] = augment(y, recipe.seed, index, recipe.augment)
        scale: float | Tensor | None = None
        if isinstance(recipe.guidance, tuple):
            low, high = recipe.guidance
            scale = (low + (high - low) * uniform(recipe.seed, where, 1, Stream.GUIDANCE)[:, 0]).float()
            condition["guidance"] = scale
        elif recipe.guidance is not None:
            scale = recipe.guidance
        # The same masks go to both passes: the pair then differs by its noise levels only.
        masks = dropout_masks(recipe.seed, where, self.mask_sizes, recipe.dropout) if recipe.dropout else None
        y, z = (v.contiguous(memory_format=torch.channels_last) for v in (y, z))
        student = functools.partial(self.preconditioning, self._forward, **condition, masks=masks)
        if masks is not None and not recipe.shared_dropout:
            masks = dropout_masks(recipe.seed, where, self.mask_sizes, recipe.dropout, step=1)
        target = functools.partial(self.preconditioning, self._target_forward, **condition, masks=masks)
        given: Function | None = None
        if self.teacher is not None:
            told = condition.get("augment")
            given = functools.partial(denoise, self.teacher, label=labels, guidance=scale, dtype=dtype, augment=told)
        terms = discrete(
            student,
            target if recipe.target in ("student", "ema") else None,
            y,
            z,
            t,
            r,
            path=self._path(stage, t, given, target),
            distance=self.distance,
            weight=self._weight(t, r),
        )
        return terms, t

    def _path(self, stage: Stage, t: Tensor, teacher: Function | None, target: Function) -> Path:
        match self.recipe.path:
            case "data":
                return to_data
            case "same-noise":
                return same_noise
            case "euler" | "heun":
                assert teacher is not None  # checked at the start
                return teacher_step(teacher, 1 if self.recipe.path == "euler" else 2)
            case "two-steps":
                assert teacher is not None
                return two_steps(teacher if stage.index == 0 else target, draw_middle(self.recipe, stage, t).to(t))

    def _weight(self, t: Tensor, r: Tensor) -> Tensor:
        match self.recipe.weight:
            case "one":
                return torch.ones_like(t)
            case "inverse-delta":
                return weights.inverse_delta(t, r)
            case "edm":
                return weights.edm(t, self.sigma_data)
            case "truncated-snr":
                return truncated_snr(t)

    @torch.no_grad()
    def _become_teacher(self, ended: Stage) -> None:
        """The student of progressive distillation that has just ended teaches the next one; of the last few a copy is kept."""
        assert self.target is not None
        self.target_flat.values.copy_(self.flat.values)
        if (steps := ended.points - 1) <= KEPT_STEPS:
            self.kept[student_name(steps)] = self.flat.values.detach().clone()

    def _microbatches(self) -> Iterator[Tensor]:
        """Global indices of this process's share of the batch, in passes."""
        batch, size, rank = self.recipe.batch, self.world.size, self.world.rank
        low, high = batch * rank // size, batch * (rank + 1) // size
        index = torch.arange(self.images_seen + low, self.images_seen + high)
        return iter(index.split(self.options.microbatch or max(len(index), 1)))

    @torch.no_grad()
    def _meter(self, terms: Terms, t: Tensor) -> None:
        """Add count, loss and distance by noise level; a product with an indicator matrix fixes the order of summation."""
        low, high = math.log(self.recipe.sigma_min), math.log(self.recipe.sigma_max)
        where = ((t.double().log() - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        indicator = nn.functional.one_hot(where, BINS).double()
        values = torch.stack([torch.ones_like(terms.loss), terms.loss.detach(), terms.distance], 1).double()
        self.meters[:BINS] += indicator.T @ values

    def read_meters(self) -> dict[str, Any]:
        """Means since the last reading, over all processes; resets the meters.

        Returns:
            ``loss``, ``distance`` and ``grad_norm``, and count, loss and distance by bin of ln sigma.

        Raises:
            TrainingError: A value is not finite.
        """
        own = self.meters.clone()
        if self.world.size > 1:
            own[:BINS] = all_sum(own[:BINS])
        m = own.cpu()
        self.meters.zero_()
        if not bool(torch.isfinite(m).all()):
            raise TrainingError(f"the loss or gradient is not finite (NaN or infinite) at {self.images_seen} images")
        count = m[:BINS, 0]
        total, steps = count.sum().clamp(min=1), m[BINS, 1].clamp(min=1)
        per = m[:BINS, 1:] / count.clamp(min=1)[:, None]
        return {
            "loss": float(m[:BINS, 1].sum() / total),
            "distance": float(m[:BINS, 2].sum() / total),
            "grad_norm": float(m[BINS, 0] / steps),
            "count_by_sigma": [int(c) for c in count],
            "loss_by_sigma": [float(v) for v in per[:, 0]],
            "distance_by_sigma": [float(v) for v in per[:, 1]],
        }

    def gradient_by_sigma(self) -> list[float | None]:
        """Norm of the loss's gradient with respect to the weights, for the images of each noise bin of the next batch.

        Deterministic, and without effect on the run. ``None`` where a bin is empty.
        """
        low, high = math.log(self.recipe.sigma_min), math.log(self.recipe.sigma_max)
        own = self.stage if self.recipe.target == "previous" else None  # the target changes with the next stage's first step
        stage = own or stage_at(self.recipe, min(self.images_seen, self.recipe.images - 1))
        index = torch.arange(self.images_seen, self.images_seen + min(self.recipe.batch, self.options.microbatch or 256))
        t, _ = draw_pairs(self.recipe, stage, index)
        where = ((t.log() - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        norms: list[float | None] = []
        for b in range(BINS):
            part = index[where == b]
            if not len(part):
                norms.append(None)
                continue
            terms, _ = self.terms(part, stage, torch.float32)
            grads = torch.autograd.grad(terms.loss.mean(), list(self.network.parameters()), allow_unused=True)
            norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads if g is not None]))))
        return norms

    # ---- precision and compilation

    @staticmethod
    def _key(stage: Stage) -> tuple[int, int]:
        return stage.points, stage.index

    def _choose_precision(self, stage: Stage) -> None:
        """bfloat16 only while its rounding is small beside the pairs: median |f_bf16 - f_fp32| < median pair distance / 4.

        At large N the two ends of a pair are close, and what a discrete objective learns from is their difference.
        """
        wanted = self.options.precision
        if wanted == "fp32" or (wanted == "auto" and not has_bf16(self.device)):
            self.dtype = torch.float32
            return
        index = torch.arange(self.images_seen, self.images_seen + min(self.recipe.batch, 256))
        with torch.no_grad():
            noise, pair = self._rounding(index, stage)
        use = noise < 0.25 * pair
        self.dtype = torch.bfloat16 if use else torch.float32
        self.log(
            f"{self.images_seen} images, N={stage.points or '-'}: bf16 changes f by {noise:.3g}, a pair is {pair:.3g} apart "
            f"(medians): {'bf16' if use else 'fp32 from here'}"
        )

    def _rounding(self, index: Tensor, stage: Stage) -> tuple[float, float]:
        outputs: dict[torch.dtype, list[Tensor]] = {torch.float32: [], torch.bfloat16: []}
        original = self.preconditioning
        for dtype, seen in outputs.items():

            def spy(*args: Any, _seen: list[Tensor] = seen, **condition: Any) -> Tensor:
                out = original(*args, **condition)
                _seen.append(out)
                return out

            self.preconditioning = spy  # type: ignore[assignment]
            try:
                self.terms(index, stage, dtype)
            finally:
                self.preconditioning = original
        full, half = outputs[torch.float32], outputs[torch.bfloat16]
        noise = (full[0] - half[0]).detach().flatten(1).norm(dim=1).median()
        if self.recipe.target in ("data", "previous"):  # the pair is the output and a clean image, far apart
            return float(noise), math.inf
        pair = (full[0] - full[1]).detach().flatten(1).norm(dim=1).median()
        return float(noise), float(pair)

    def _compile(self) -> None:
        """torch.compile, tried on one small call; where the machine cannot, the run goes on uncompiled and says so."""
        compiled = torch.compile(self.network)
        try:
            index = torch.arange(min(self.recipe.batch, self.options.microbatch or self.recipe.batch))  # the size of the run
            self._forward = compiled
            self.terms(index, stage_at(self.recipe, 0), torch.float32)[0].loss.sum().backward()
            self._target_forward = torch.compile(self.target) if self.target is not None else compiled
        except Exception as error:
            self._forward = self.network
            self.log(f"torch.compile is not usable here ({type(error).__name__}); training goes on without it")
        self.flat.gradient.zero_()

    # ---- what a checkpoint holds

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the run, by slash-separated names."""
        out = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        if self.target is not None:
            out |= {f"target/{k}": v for k, v in self.target.state_dict().items()}
        for name, average in self.averages.items():
            out |= {f"ema/{name}/{k}": v for k, v in average.state_dict().items()}
        out |= {f"kept/{name}": values for name, values in self.kept.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer/{i}/{k}": v for k, v in state.items()}
        return out | {"meters": self.meters}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        return {
            "precision": str(self.dtype).removeprefix("torch."),
            "stage": list(self._key(self.stage)) if self.stage else None,
        }

    def load(self, images_seen: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continue from what :meth:`tensors` and :meth:`facts` gave."""
        self.network.load_state_dict(_under(tensors, "network/"))
        if self.target is not None:
            self.target.load_state_dict(_under(tensors, "target/"))
        for name, average in self.averages.items():
            average.load_state_dict(_under(tensors, f"ema/{name}/"))
        self.kept = {name: values.to(self.device) for name, values in _under(tensors, "kept/").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimizer/").items():
            i, name = key.split("/", 1)
            state.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.meters.copy_(tensors["meters"])
        self.images_seen = images_seen
        self.dtype = getattr(torch, facts["precision"])
        if facts["stage"] is not None:
            self.stage = Stage(points=facts["stage"][0], index=facts["stage"][1])

    def weights(self, name: str | None = None) -> dict[str, Tensor]:
        """A copy on the CPU of the network's state dict, with an average or a kept student in place of the live weights."""
        state = self.network.state_dict()
        if name in self.kept:
            state |= self.flat.named(self.kept[name])
        elif name is not None:
            state |= self.averages[name].state_dict()
        return {k: v.detach().cpu().clone() for k, v in state.items()}


def _distance(recipe: Recipe, shape: tuple[int, int, int]) -> Distance:
    match recipe.distance:
        case "l1":
            return l1
        case "l2":
            return l2
        case "pseudo-huber":
            c = recipe.huber_c
            return functools.partial(pseudo_huber, c=huber_constant(math.prod(shape)) if c is None else c)
        case "lpips" | "effnet-lite0":
            return open_distance(recipe.distance, channels=shape[0])[0]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
