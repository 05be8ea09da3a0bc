"""What a lent GPU trains: gallery models by name, each in one or two stages, and how many images a stage may see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atonce.data.dataset import ImageData
    from atonce.model import ConsistencyModel
    from atonce.training.recipe import Recipe

# Images and the model of the stage before (None in the first stage) to the recipe.
Make = Callable[[int, "ConsistencyModel | None"], "Recipe"]


@dataclass(frozen=True)
class Stage:
    """One training run of a job.

    Attributes:
        name: For files and tables.
        recipe: The recipe.
        share: Part of the job's training time.
        least: Fewest images that make sense.
        most: Images beyond which more is not expected to help.
    """

    name: str
    recipe: Make
    share: float
    least: int
    most: int


@dataclass(frozen=True)
class Job:
    """A model that is trained in legs.

    Attributes:
        name: On the command line.
        data: What :func:`atonce.data.sources.open_data` takes.
        split: Part of the data that is trained on.
        stages: In order; each starts from the model of the one before.
        what: For people.
    """

    name: str
    data: str
    split: str
    stages: tuple[Stage, ...]
    what: str

    def check(self) -> None:
        """Say what is missing where the data are not there; they are not read."""
        from atonce.data.bundled import LOCAL, local_path

        if self.data in LOCAL:
            local_path(self.data)

    def open(self) -> ImageData:
        """The training images."""
        from atonce.data.sources import open_data

        return open_data(self.data, split=self.split)


def _digits(images: int, before: ConsistencyModel | None, batch: int = 256) -> Recipe:
    from atonce.training import presets

    return presets.digits(images, batch, s0=40, s1=640, lr_cooldown=0.5, ema=(0.9995,))


def _teacher(network: Any, *, flip: bool = False, dropout: float = 0.1, batch: int = 1024) -> Make:
    """A class-conditional diffusion model with EDM's settings; a tenth of the images come without label, for guidance."""

    def make(images: int, before: ConsistencyModel | None) -> Recipe:
        from atonce.training import presets

        half_life = f"half-life-{max(batch, min(500_000, images // 20))}"
        return presets.diffusion(
            images,
            batch,
            network=network,
            conditional=True,
            label_dropout=0.1,
            dropout=dropout,
            flip=flip,
            lr_cooldown=0.3,
            ema=(half_life,),
        )

    return make


def _tuned(*, flip: bool = False, dropout: float = 0.1, batch: int = 1024, stages: int = 8) -> Make:
    """Easy consistency tuning from the teacher: t and r close in over the budget."""

    def make(images: int, before: ConsistencyModel | None) -> Recipe:
        from atonce.training import presets

        return presets.ect(
            images,
            batch,
            conditional=True,
            dropout=dropout,
            flip=flip,
            lr=3e-4,
            lr_cooldown=0.3,
            ema=(0.9995,),
            ema_rampup=0.05,
            init=before,  # type: ignore[arg-type]  # a model, which train names
            ect_stages=stages,
        )

    return make


def _distilled(*, flip: bool = False, batch: int = 1024) -> Make:
    """Consistency distillation with Heun steps; the target is a moving average."""

    def make(images: int, before: ConsistencyModel | None) -> Recipe:
        from atonce.training import presets

        return presets.cd(
            images,
            batch,
            conditional=True,
            flip=flip,
            target="ema",
            mu=0.95,
            lr_cooldown=0.3,
            ema=(0.9995,),
            ema_rampup=0.05,
            teacher=before,
        )

    return make


def _cifar_network() -> Any:
    """3.9 M parameters, so that all of its state fits: DDPM++ with fewer channels and attention at 16x16."""
    from atonce.networks.unet import UNetConfig

    return UNetConfig(32, 3, channels=48, channel_mult=(1, 2, 2), blocks=2, attention=(16,), labels=10)


def _cifar_large() -> Any:
    """15.7 M parameters: its weights travel in half precision, and its optimiser starts again with each leg."""
    from atonce.networks.unet import UNetConfig

    return UNetConfig(32, 3, channels=96, channel_mult=(1, 2, 2), blocks=2, attention=(16,), labels=10)


def _lazy(network: Callable[[], Any], **settings: Any) -> Make:
    return lambda images, before: _teacher(network(), **settings)(images, before)


def jobs() -> dict[str, Job]:
    """All jobs by name."""
    fashion = Stage("teacher", _teacher("small"), 0.45, 200_000, 20_000_000)
    cifar = Stage("teacher", _lazy(_cifar_network, flip=True), 0.5, 500_000, 60_000_000)
    large = Stage("teacher", _lazy(_cifar_large, flip=True, dropout=0.13), 0.5, 500_000, 100_000_000)
    tuned = Stage("tuned", _tuned(), 0.55, 200_000, 30_000_000)
    distilled = Stage("distilled", _distilled(), 0.55, 200_000, 20_000_000)
    cifar_tuned = Stage("tuned", _tuned(flip=True, dropout=0.2), 0.5, 500_000, 60_000_000)
    known = (
        Job("digits", "digits", "all", (Stage("ict", _digits, 1.0, 50_000, 6_000_000),), "digits 8x8, iCT"),
        Job("fashion", "fashion-mnist", "train", (fashion, tuned), "Fashion-MNIST 28x28 by class: diffusion, then ECT"),
        Job("fashion-cd", "fashion-mnist", "train", (fashion, distilled), "Fashion-MNIST 28x28 by class: diffusion, then CD"),
        Job("cifar10", "cifar10", "train", (cifar, cifar_tuned), "CIFAR-10 by class, 4 M parameters: diffusion, then ECT"),
        Job("cifar10-large", "cifar10", "train", (large, cifar_tuned), "the same with 16 M parameters"),
        Job(
            "tiny",
            "digits",
            "all",
            (
                Stage("teacher", _teacher("tiny", batch=64), 0.5, 256, 640),
                Stage("tuned", _tuned(batch=64, stages=2), 0.5, 256, 640),
            ),
            "a few steps on digits, for trying the machinery",
        ),
    )
    return {job.name: job for job in known}


def images_for(stage: Stage, rate: float, seconds: float, batch: int) -> int:
    """The image budget of a stage.

    Args:
        stage: The stage.
        rate: Images per second, measured.
        seconds: Time for it, over all legs.
        batch: Images per step.

    Returns:
        What fits in 92 % of the time, within the stage's limits, to two digits, in whole batches.
    """
    images = min(max(0.92 * rate * seconds, stage.least), stage.most)
    unit = 10 ** max(0, math.floor(math.log10(images)) - 1)
    return max(1, math.floor(images / unit) * unit // batch) * batch


def compile_pays(eager: float, compiled: float, compile_seconds: float, seconds: float) -> bool:
    """Whether compiling first makes more images in the time that lies ahead.

    Args:
        eager: Images per second without.
        compiled: Images per second with.
        compile_seconds: What it costs once.
        seconds: Time ahead.

    Returns:
        The answer.
    """
    return compiled * (seconds - compile_seconds) > eager * seconds
