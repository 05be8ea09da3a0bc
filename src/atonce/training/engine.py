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
from atonce.data.loader import DeviceData
from atonce.model import ConsistencyModel
from atonce.networks.build import NetworkConfig, build
from atonce.objectives.adaptive import AdaptiveWeight
from atonce.objectives.derivative import How, along
from atonce.objectives.discrete import Terms
from atonce.objectives.distances import Distance, huber_constant, l1, l2, pseudo_huber
from atonce.objectives.perceptual import open_distance
from atonce.training.ema import Average, decay_at
from atonce.training.flat import FlatParameters
from atonce.training.options import Options, has_bf16
from atonce.training.product import preconditioning_of
from atonce.training.recipe import DISTILLED, EXACT, FORWARD, Recipe
from atonce.training.schedule import Stage, draw_pairs, learning_rate, stage_at, student_name
from atonce.training.terms import discrete_terms, draw, flow_terms, group_terms, tangent_terms

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
        self.head = AdaptiveWeight(recipe.seed).to(self.device) if recipe.weight == "adaptive" else None
        self.learnt = [self.flat] if self.head is None else [self.flat, FlatParameters(self.head)]
        values = [flat.values for flat in self.learnt]
        self.optimizer = kind(values, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), foreach=False)
        self.preconditioning = preconditioning_of(recipe)
        shape = (recipe.network.image_channels, recipe.network.size, recipe.network.size)
        self.distance = _distance(recipe, shape)
        self.mask_sizes = self.network.mask_sizes() if recipe.dropout else []
        self.unit = recipe.group if recipe.pairs == "groups" else 1
        self.images_seen = 0
        self.stage: Stage | None = None
        self.dtype = torch.float32
        self.meters = torch.zeros(BINS + 1, 3, dtype=torch.float64, device=self.device)
        self.student: Callable[..., Tensor] = self.network
        self.target_student: Callable[..., Tensor] = self.target if self.target is not None else self.network
        self.how: How = "jvp"
        if recipe.pairs in FORWARD:
            self.how = self._derivative()
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
        for flat in self.learnt:
            flat.gradient.zero_()
        for index in self._microbatches():
            terms, t = self.terms(index, stage, self.dtype)
            (terms.loss.sum() / recipe.batch).backward()
            self._meter(terms, t)
        if self.world.size > 1:  # each process holds its images' share of the batch mean already
            for flat in self.learnt:
                flat.gradient.copy_(all_sum(flat.gradient))
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
        drawn = draw(self.recipe, stage, self.data, index, self.device, self.mask_sizes)
        match self.recipe.pairs:
            case "tangent":
                return tangent_terms(self, drawn), drawn.t
            case "mean-flow":
                return flow_terms(self, drawn), drawn.t
            case "groups":
                return group_terms(self, drawn), drawn.t
            case _:
                return discrete_terms(self, drawn, stage, dtype), drawn.t

    @torch.no_grad()
    def _become_teacher(self, ended: Stage) -> None:
        """The student of progressive distillation that has just ended teaches the next one; of the last few a copy is kept."""
        assert self.target is not None
        self.target_flat.values.copy_(self.flat.values)
        if (steps := ended.points - 1) <= KEPT_STEPS:
            self.kept[student_name(steps)] = self.flat.values.detach().clone()

    def _microbatches(self) -> Iterator[Tensor]:
        """Global indices of this process's share of the batch, in passes, which never divide a group of IMM."""
        size, rank, unit = self.world.size, self.world.rank, self.unit
        groups = self.recipe.batch // unit
        low, high = groups * rank // size * unit, groups * (rank + 1) // size * unit
        index = torch.arange(self.images_seen + low, self.images_seen + high)
        return iter(index.split(max((self.options.microbatch or len(index)) // unit, 1) * unit))

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
        count = max(min(self.recipe.batch, self.options.microbatch or 256) // self.unit, 1) * self.unit
        index = torch.arange(self.images_seen, self.images_seen + count)
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
        if self.recipe.pairs in EXACT or wanted == "fp32" or (wanted == "auto" and not has_bf16(self.device)):
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
            self.student = compiled
            self.terms(index, stage_at(self.recipe, 0), torch.float32)[0].loss.sum().backward()
            self.target_student = torch.compile(self.target) if self.target is not None else compiled
        except Exception as error:
            self.student = self.network
            self.log(f"torch.compile is not usable here ({type(error).__name__}); training goes on without it")
        for flat in self.learnt:
            flat.gradient.zero_()

    def _derivative(self) -> How:
        """How the network is differentiated forwards, tried on one image; differences where it cannot be."""
        if self.recipe.derivative != "auto":
            return self.recipe.derivative
        net = self.recipe.network
        assert isinstance(net, NetworkConfig)  # it is resolved
        x, c = torch.zeros(1, net.image_channels, net.size, net.size, device=self.device), torch.zeros(1, device=self.device)
        try:
            along(self.network, (x, c), (x + 1, c + 1))
        except RuntimeError as error:  # also where an operation has none at all
            self.log(f"the network has no forward-mode derivative here ({str(error).splitlines()[0]}): differences are taken")
            return "difference"
        return "jvp"

    # ---- what a checkpoint holds

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the run, by slash-separated names."""
        out = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        if self.target is not None:
            out |= {f"target/{k}": v for k, v in self.target.state_dict().items()}
        if self.head is not None:
            out |= {f"head/{k}": v for k, v in self.head.state_dict().items()}
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
        if self.head is not None:
            self.head.load_state_dict(_under(tensors, "head/"))
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
