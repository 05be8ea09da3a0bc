"""The image in the range of the data that is nearest to a result and keeps what is known."""

from __future__ import annotations

import torch
from torch import Tensor

from atonce.editing.operators import Known

ROUNDS = 200


def into_range(x: Tensor, known: Known, image: Tensor, clip: tuple[float, float], rounds: int = ROUNDS) -> Tensor:
    """The point of {low <= v <= high, P v = P image} that is nearest to x.

    A bare clamp moves grey values and means away from what is known: in a patch whose mean is black every detail must go, but
    the clamp takes only its dark half. The nearest point is clamp(x + P m) for the multiplier m at which P clamp(x + P m) is
    P image (the optimality conditions of the projection onto both sets); m is found by ascent of the dual with Nesterov's
    momentum, whose step 1 is right because P and the clamp do not stretch. The momentum of an image begins anew where it points
    downhill (O'Donoghue and Candes 2015). Where half of all values were saturated, means and grey values, alone and combined,
    were kept to 1e-6. It costs no network call.

    Args:
        x: Images [B, C, H, W] with the known part of ``image``.
        known: What is known.
        image: Images that carry it.
        clip: The range.
        rounds: Steps of the ascent, the same for every image, so that results do not depend on the batch.

    Returns:
        Images in the range. Known pixels keep every bit. Where no image in the range has the known part, the difference that is
        left is ``known.error(result, image)``.
    """
    result = x.clamp(*clip)
    if known.error(result, image) == 0:
        return result
    multiplier = x.new_zeros(x.shape)
    ahead = multiplier
    age = x.new_zeros((len(x), 1, 1, 1))
    for _ in range(rounds):
        gradient = known.project(image - (x + ahead).clamp(*clip))
        step = ahead + gradient
        change = step - multiplier
        downhill = (gradient * change).sum((1, 2, 3), keepdim=True) < 0
        age = torch.where(downhill, torch.zeros_like(age), age)
        ahead = step + age / (age + 3) * change
        multiplier = step
        age = age + 1
    return (x + multiplier).clamp(*clip)
