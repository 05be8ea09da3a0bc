"""A recipe: everything that decides what a training run learns, in one frozen dataclass on one screen."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from atonce.core.averages import Rate, name_of, parse_rate
from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.data.augment import AUGMENT_LABELS
from atonce.model import ConsistencyModel
from atonce.model_files import model_identity
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig, config_from_dict, config_to_dict
from atonce.networks.presets import NAMES, named
from atonce.networks.unet import UNetConfig
from atonce.noise.curricula import n_ict
from atonce.objectives.meanflow import Along
from atonce.objectives.trigflow import Norm
from atonce.preconditioning import Clock, Kind
from atonce.training.limits import CHOICES, RANGES, WANTED, WORDS

Pairs = Literal["karras", "lognormal-intervals", "ect", "denoising", "halving", "tangent", "mean-flow", "groups"]
Curriculum = Literal["fixed", "ct", "ict"]
Target = Literal["student", "ema", "data", "previous"]
Path = Literal["same-noise", "euler", "heun", "data", "two-steps"]
DistanceName = Literal["l1", "l2", "pseudo-huber", "lpips", "effnet-lite0"]
Weight = Literal["one", "inverse-delta", "edm", "truncated-snr", "adaptive"]
DISTILLED = ("euler", "heun", "two-steps")  # paths that a teacher gives
MAPS = ("mean-flow", "groups")  # pairs whose model is a flow map
FORWARD = ("tangent", "mean-flow")  # pairs whose objective differentiates the network forwards
EXACT = (*FORWARD, "groups")  # pairs that are computed in float32 throughout
RANDOM = "random"  # as init: weights drawn from the seed, also where a student would start from its teacher


@dataclass(frozen=True)
class Recipe:
    """What is trained, on how much, and how. Device, precision and paths are not part of it."""

    method: str = "ict"  # name of the preset it came from
    images: int = 1_024_000  # budget: images seen (not distinct ones)
    batch: int = 128  # images per optimiser step, over all processes
    seed: int = 0  # of weights, order, noise, everything
    network: str | NetworkConfig = "auto"  # a name (sized to the data) or a configuration
    conditional: bool = False  # train with the data's labels
    label_dropout: float = 0.0  # share of images trained without their label
    # the process
    sigma_data: float | Literal["measured"] = "measured"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    preconditioning: Kind = "boundary"
    clock: Literal["auto", "log", "time"] = "auto"  # what the network is told of sigma; auto: what that of init is told, or t
    # the five choices
    pairs: Pairs = "lognormal-intervals"
    path: Path = "same-noise"
    target: Target = "student"
    distance: DistanceName = "pseudo-huber"
    weight: Weight = "inverse-delta"
    # their settings
    curriculum: Curriculum = "ict"  # of the number of grid points N; "fixed": s1 intervals throughout
    s0: int = 10
    s1: int = 1280
    P_mean: float = -1.1
    P_std: float = 2.0
    huber_c: float | None = None  # None: 0.00054 sqrt(dimension)
    mu: float | Literal["ct-code", "ct-paper"] = 0.0  # decay of the target network (target = "ema")
    mu0: float = 0.9
    ect_q: float = 2.0
    ect_k: float = 8.0
    ect_b: float = 1.0
    ect_stages: int = 8  # equal shares of the budget
    teacher_steps: int = 64  # progressive distillation: intervals of the teacher's grid, halved until one is left
    tangent_norm: Norm = "sample"  # continuous time: how tangents are brought to size
    tangent_warmup: int = 0  # images over which their second part comes in
    distinct: float = 0.75  # MeanFlow: share of pairs with r < t; the others learn the velocity
    r_mean: float | None = None  # MeanFlow: P_mean of r; None: r is drawn as t, and the two are put in order
    r_std: float = 1.6
    direction: Along = "sample"  # MeanFlow: differentiate along e - y, or (iMF) the predicted velocity
    error_power: float = 0.0  # MeanFlow: p of the weight 1 / (error + c)^p
    error_c: float = 1e-3
    group: int = 4  # IMM: images that share their noise levels; it divides batch
    imm_k: int = 12  # IMM: r is a 2^k-th of the range of sigma below t
    imm_a: Literal[1, 2] = 1  # IMM: power of alpha in the weight
    imm_b: float = 5.0  # IMM: shift in the weight
    derivative: Literal["auto", "jvp", "difference"] = "auto"  # of the network along a direction; auto: jvp where it works
    guidance: float | tuple[float, float] | None = None  # of the teacher: one scale, or a range that the student is told
    dropout: float = 0.0
    shared_dropout: bool = True  # student and target drop the same units (iCT); False is there to be compared with
    flip: bool = False  # horizontal flips
    augment: float = 0.0  # probability of each of EDM's augmentations; the network is told by labels which were applied
    # the optimiser
    optimizer: Literal["radam", "adam"] = "radam"
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    lr_rampup: int = 0  # images over which the rate rises linearly
    lr_cooldown: float = 0.0  # share of the budget at the end over which the rate falls to zero (cosine)
    # averages that are sampled, the first by default: a decay per step, "half-life-IMAGES" or "power-SIGMA_REL"
    ema: tuple[float | str, ...] = (0.9999,)
    ema_rampup: float = 0.0  # cap on an average's half-life, as a share of the images seen; 0: no cap
    # models, or names and folders of them; a student without init starts from its teacher, with "random" it does not
    init: str | None = None  # whose weights start the run
    teacher: str | None = None  # the diffusion model that is distilled

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: A field is out of its range; the message names it, its value and the range.
        """
        for name in ("ema", "guidance"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("init", "teacher"):
            if not isinstance(getattr(self, name), str | os.PathLike | ConsistencyModel | None):
                raise InputError(
                    f"recipe field {name} is {getattr(self, name)!r}, must be a model, its name, a folder or a hub id"
                )
        hints = get_type_hints(type(self))
        for name in CHOICES:
            known = get_args(hints[name])
            if getattr(self, name) not in known:
                raise InputError(f"recipe field {name} is {getattr(self, name)!r}, must be one of {', '.join(map(str, known))}")
        for name, low, high, text in RANGES:
            value = getattr(self, name)
            if isinstance(value, str) and value in WORDS.get(name, ()):
                continue
            if value is None and name in ("huber_c", "r_mean"):
                continue
            number = isinstance(value, int if hints[name] is int else (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                whole = "a whole number, " if hints[name] is int else ""
                raise InputError(f"recipe field {name} is {value!r}, must be {whole}{text}")
        for name in ("conditional", "flip", "shared_dropout"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"recipe field {name} is {getattr(self, name)!r}, must be True or False")
        if not isinstance(self.network, NetworkConfig) and self.network not in NAMES:
            raise InputError(f"recipe field network is {self.network!r}, must be one of {', '.join(NAMES)} or a configuration")
        if self.images < self.batch:
            raise InputError(f"recipe field images is {self.images}, must be at least one batch ({self.batch})")
        if self.sigma_max <= self.sigma_min:
            raise InputError(f"recipe field sigma_max is {self.sigma_max}, must be above sigma_min ({self.sigma_min})")
        if self.s1 < self.s0:
            raise InputError(f"recipe field s1 is {self.s1}, must be at least s0 ({self.s0}): the curriculum refines the grid")
        if not isinstance(self.ema, tuple) or not self.ema:
            raise InputError(f"recipe field ema is {self.ema!r}, must be a tuple, for example (0.9999,)")
        try:
            names = [name_of(parse_rate(entry)) for entry in self.ema]
        except InputError as error:
            raise InputError(f"recipe field ema is {self.ema!r}: {error}") from error
        if len(set(names)) < len(names):
            raise InputError(f"recipe field ema is {self.ema}: each average may stand once, and they must differ in six digits")
        self._check_guidance()
        if self.pairs == "ect" and self.ect_stages * math.log2(self.ect_q) > 20:
            raise InputError(
                f"recipe field ect_stages is {self.ect_stages}: with ect_q={self.ect_q:g} the last stage's pairs are closer "
                f"than float32 can tell; at most {math.floor(20 / math.log2(self.ect_q))} stages (ect_q**ect_stages <= 2**20)"
            )
        for pairs, path, target in (("denoising", "data", "data"), ("halving", "two-steps", "previous")):
            if len({self.pairs == pairs, self.path == path, self.target == target}) > 1:
                raise InputError(f"recipe fields pairs={pairs!r}, path={path!r} and target={target!r} belong together")
        if self.pairs == "halving" and self.teacher_steps & (self.teacher_steps - 1):
            raise InputError(f"recipe field teacher_steps is {self.teacher_steps}, must be a power of two: it is halved to 1")
        if self.pairs == "halving":
            self._check_halvings()
        self._check_continuous()
        if self.pairs in ("karras", "lognormal-intervals") and self.curriculum == "ict":
            n_ict(0, self.images, self.s0, self.s1)  # refuses a budget that is shorter than the stages
        if self.mu != 0 and self.target != "ema":
            raise InputError(f"recipe field mu is {self.mu!r}, which is for target='ema': set that, or mu=0.0")
        if self.label_dropout and not self.conditional:
            raise InputError("recipe field label_dropout needs conditional=True")

    def _check_halvings(self) -> None:
        stages = self.teacher_steps.bit_length() - 1
        last = (self.steps - 1) * self.batch  # where the last whole batch begins; a stage that has none would teach nothing
        if self.images < stages * self.batch or last * stages // self.images < stages - 1:
            raise InputError(
                f"recipe field images is {self.images}, too few for the {stages} halvings of teacher_steps "
                f"{self.teacher_steps} in batches of {self.batch}: give {2 * stages * self.batch} or more, or a lower one"
            )

    def _check_continuous(self) -> None:
        if self.clock == "time" and self.preconditioning in ("edm", "boundary"):
            raise InputError("recipe field clock is 'time', which goes with preconditioning='trigflow' or 'flow': use 'log'")
        if self.weight == "adaptive" and self.pairs != "tangent":
            raise InputError("recipe field weight is 'adaptive', which goes with pairs='tangent' (sct, scd)")
        if self.pairs == "groups" and self.batch % self.group:
            raise InputError(f"recipe field batch is {self.batch}, must be a multiple of group ({self.group})")
        for name, known in WANTED.get(self.pairs, {}).items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"recipe field {name} is {value!r}: with pairs={self.pairs!r} it is {' or '.join(known)}")

    def _check_guidance(self) -> None:
        scales = () if self.guidance is None else self.guidance if isinstance(self.guidance, tuple) else (self.guidance,)
        numbers = all(isinstance(w, (int, float)) and not isinstance(w, bool) and 0 <= w <= 100 for w in scales)
        if not numbers or (isinstance(self.guidance, tuple) and not (len(scales) == 2 and scales[0] < scales[1])):
            raise InputError(
                f"recipe field guidance is {self.guidance!r}, must be a scale from 0 to 100, or a pair (low, high)"
            )
        if scales and self.pairs == "mean-flow":
            if min(scales) < 1 or not self.label_dropout:
                raise InputError(
                    f"recipe field guidance is {self.guidance!r} with label_dropout {self.label_dropout}: MeanFlow learns its "
                    "guidance from images with and without a class; give a scale of 1 or more, and label_dropout=0.1"
                )
        elif scales and self.path not in DISTILLED:
            raise InputError(
                f"recipe field guidance is of a teacher, and path={self.path!r} has none: leave it out, or distil (cd)"
            )
        if scales and not self.conditional:
            raise InputError("recipe field guidance needs labels: set conditional=True, with data and a teacher that have them")
        if isinstance(self.guidance, tuple) and self.pairs == "halving":
            raise InputError("recipe field guidance must be one scale for progressive distillation")

    @property
    def averages(self) -> dict[str, Rate]:
        """The moving averages by name; the first one is sampled by default."""
        return {name_of(rate): rate for rate in map(parse_rate, self.ema)}

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches that fit in the budget."""
        return self.images // self.batch

    def as_dict(self) -> dict[str, Any]:
        """JSON values of all fields; a model is its name and the start of its weights' digest."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {name: model_name(values[name]) for name in ("init", "teacher")}
        values = {name: value for name, value in values.items() if name not in _LATER or value != _DEFAULTS[name]}
        return values | ({"network": config_to_dict(self.network)} if isinstance(self.network, NetworkConfig) else {})

    def __repr__(self) -> str:
        """One screen: of a model only its name and the start of its weights' digest."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {name: model_name(values[name]) for name in ("init", "teacher")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The recipe of :meth:`as_dict`.

        Args:
            values: Fields by name; those left out keep their default.

        Returns:
            The recipe.

        Raises:
            InputError: A field is unknown or out of range.
        """
        known = {f.name for f in dataclasses.fields(Recipe)}
        if unknown := sorted(set(values) - known):
            raise InputError(f"recipe fields {', '.join(unknown)} are not known; known: {', '.join(sorted(known))}")
        values = dict(values)
        if isinstance(values.get("network"), Mapping):
            values["network"] = config_from_dict(values["network"])
        return Recipe(**values)

    def digest(self) -> str:
        """Hex SHA-256 of the recipe, quoted beside every published number."""
        return sha256_json(self.as_dict())

    def differences(self, other: Recipe) -> list[str]:
        """One line for each field that differs: ``name: mine -> theirs``."""
        mine, theirs = flatten(self.as_dict()), flatten(other.as_dict())
        return [f"{k}: {mine.get(k)!r} -> {theirs.get(k)!r}" for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]

    def resolve(
        self,
        size: int,
        image_channels: int,
        labels: int,
        sigma_data: float,
        init: tuple[NetworkConfig, float] | None = None,
        clock: Clock | None = None,
    ) -> Recipe:
        """The recipe with all that depends on data and starting model filled in.

        Args:
            size: Height and width of the images.
            image_channels: Channels of the images.
            labels: Classes of the data.
            sigma_data: Measured standard deviation of the data.
            init: Network and sigma_data of the model whose weights start the run: taken over where the recipe says ``"auto"``
                and ``"measured"``.
            clock: What the network of that model is told of sigma: taken over likewise.

        Returns:
            A recipe whose network is a configuration and whose sigma_data is a number.

        Raises:
            InputError: The network does not fit the data.
        """
        classes = labels if self.conditional else 0
        told: dict[str, Any] = {
            "labels": classes,
            "augment_labels": AUGMENT_LABELS if self.augment else 0,
            "guidance": isinstance(self.guidance, tuple),
            "second_time": self.pairs in MAPS,
        }
        if self.network == "auto" and init is not None:
            network = dataclasses.replace(init[0], **told)
        elif isinstance(self.network, str):
            network = dataclasses.replace(named(self.network, size, image_channels, classes), **told)
            if self.pairs == "tangent" and init is None and not (isinstance(network, ADMConfig) and not network.scale_shift):
                network = dataclasses.replace(network, double_norm=True)
            if (
                isinstance(network, UNetConfig)
                and network.embedding == "fourier"
                and self.pairs != "denoising"
                and (self.init is None or self.init == RANDOM)
            ):
                # Published NCSN++ embeds the noise level at scale 16, with which consistency training from data is unstable.
                network = dataclasses.replace(network, fourier_scale=_GENTLE)
        else:
            network = self.network
        if (network.size, network.image_channels, network.labels) != (size, image_channels, classes):
            raise InputError(
                f"the network is for {network.image_channels}x{network.size}x{network.size} images and {network.labels} "
                f"classes, the data have {image_channels}x{size}x{size} and {classes}"
            )
        for name in ("augment_labels", "guidance", "second_time"):
            if getattr(network, name) < told[name]:
                raise InputError(
                    f"the network has {name}={getattr(network, name)}, the recipe needs {told[name]}: set it there"
                )
        if network.second_time > told["second_time"]:
            raise InputError(f"the network has second_time=True, and pairs={self.pairs!r} tells it none: leave it out there")
        if network.guidance > told["guidance"]:
            raise InputError(
                "the network has guidance=True, but the recipe gives it no range: set guidance=(low, high), or not there"
            )
        if self.sigma_data != "measured":
            known = self.sigma_data
        else:
            known = round(sigma_data, 4) if init is None else init[1]
        settled: Any = self.clock
        if settled == "auto" and self.preconditioning in ("trigflow", "flow"):
            settled = clock or "time"
        return dataclasses.replace(self, network=network, sigma_data=known, clock=settled)


def model_name(model: Any) -> str | None:
    """A name for what stands in a recipe as ``init`` or ``teacher``: of a model as an object, its identity."""
    if model is None:
        return None
    return model_identity(model) if isinstance(model, ConsistencyModel) else str(model)


# Fields that came later: left out of a recipe's values at their default, so that the digests of older recipes stay.
_LATER = (
    *("clock", "tangent_norm", "tangent_warmup", "derivative"),
    *("distinct", "r_mean", "r_std", "direction", "error_power", "error_c"),
    *("group", "imm_k", "imm_a", "imm_b"),
)

_GENTLE = 0.02  # Fourier scale of iCT: Song and Dhariwal 2023, section 3.2

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Recipe)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; tuples become lists."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out
