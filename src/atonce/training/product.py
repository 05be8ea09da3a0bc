"""What a recipe makes: the configuration of its model and what the model's card says of it."""

from __future__ import annotations

import math
from typing import Any

from atonce.model import Guidance, ModelConfig
from atonce.preconditioning import Clock, Preconditioning
from atonce.training.recipe import MAPS, Recipe
from atonce.training.schedule import halving_grid, student_name

_LARGE = 64  # pixels from which images get the second time point published for ImageNet at 64x64
_SECOND = 1.526 / 0.5
_SECOND_ANGLE = 1.1


def preconditioning_of(recipe: Recipe) -> Preconditioning:
    """The preconditioning of the network that a resolved recipe trains."""
    end = recipe.sigma_min if recipe.preconditioning == "boundary" else 0.0
    clock: Clock = "log" if recipe.clock == "auto" else recipe.clock
    return Preconditioning(recipe.preconditioning, float(recipe.sigma_data), end, clock, recipe.pairs in MAPS)


def model_config(recipe: Recipe, preconditioning: Preconditioning, labels: tuple[str, ...] | None) -> ModelConfig:
    """The configuration of the model that a recipe trains.

    Args:
        recipe: A resolved recipe.
        preconditioning: Of its network.
        labels: Names of the data's classes.

    Returns:
        The configuration.
    """
    assert not isinstance(recipe.network, str)  # it is resolved
    guidance = None
    if isinstance(recipe.guidance, tuple):
        guidance = Guidance("embedded", recipe.guidance)
    elif recipe.guidance is not None:
        guidance = Guidance("fixed", (recipe.guidance,))
    elif recipe.pairs == "denoising" and recipe.label_dropout:
        guidance = Guidance("free")
    times: dict[int, tuple[float, ...]] = {}
    if recipe.pairs == "halving":
        times = {n: tuple(halving_grid(recipe, n)[:-1]) for n in (1 << k for k in range(recipe.teacher_steps.bit_length() - 1))}
    elif recipe.pairs == "tangent":
        # The second of two steps at t = 1.1 (Lu and Song 2024, appendix G), whatever the size of the images.
        second = math.tan(_SECOND_ANGLE) * float(recipe.sigma_data)
        times = {2: (recipe.sigma_max, second)} if second < recipe.sigma_max else {}
    elif recipe.pairs not in ("denoising", *MAPS) and recipe.network.size >= _LARGE:
        # The second of two steps: 1.526 on ImageNet 64x64 (Song and Dhariwal 2023), scaled with sigma_data.
        second = _SECOND * float(recipe.sigma_data)
        times = {2: (recipe.sigma_max, second)} if preconditioning.sigma_end < second < recipe.sigma_max else {}
    return ModelConfig(
        network=recipe.network,
        preconditioning=preconditioning,
        kind="denoiser" if recipe.pairs in ("denoising", "halving") else "flow_map" if recipe.pairs in MAPS else "consistency",
        sigma_min=recipe.sigma_min,
        sigma_max=recipe.sigma_max,
        labels=labels if recipe.conditional else None,
        time_points=times,
        sampler="euler" if recipe.pairs == "halving" else "auto",
        guidance=guidance,
    )


def model_facts(recipe: Recipe, student_steps: int = 1) -> dict[str, Any]:
    """What the card of the model says of its recipe.

    Args:
        recipe: A resolved recipe.
        student_steps: For progressive distillation: the steps that the student which is the model takes.

    Returns:
        JSON values by name.
    """
    facts: dict[str, Any] = {"method": recipe.method, "ema": next(iter(recipe.averages))}
    if recipe.pairs == "halving":
        facts["student_steps"] = student_steps
        if facts["ema"] == "0":  # no average: the student itself, called like those that are kept
            facts["ema"] = student_name(student_steps)
    if recipe.teacher is not None:
        facts["teacher"] = recipe.teacher
    if isinstance(recipe.guidance, tuple):
        low, high = recipe.guidance
        facts["guidance"] = f"a condition of the network, from {low:g} to {high:g}; 1 is no guidance"
    elif recipe.guidance is not None:
        facts["guidance"] = (
            f"fixed in {'training' if recipe.pairs in MAPS else 'distillation'}, scale {recipe.guidance:g}; 1 is no guidance"
        )
    elif recipe.pairs == "denoising" and recipe.label_dropout:
        facts["guidance"] = "any scale, at two network calls instead of one; 1 is no guidance"
    if recipe.pairs == "halving" and recipe.teacher_steps > 2 and student_steps == 1:
        others = "that of two steps is" if recipe.teacher_steps == 4 else "those of two and four steps are"
        facts["weights"] = f"the one-step student; {others} kept under the names of ema"
    return facts | {"recipe_digest": recipe.digest(), "recipe": recipe.as_dict()}
