"""Zero-shot editing: restarts that put what is known back after every step (Song et al. 2023, Algorithm 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from atonce.editing.fit import into_range
from atonce.editing.operators import Known

Function = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class EditInfo:
    """What an edit did.

    Attributes:
        sigmas: Noise levels of the steps.
        calls: Network calls for each image.
        clamped: Largest difference of the result's known part from what was given, after the range of the data was imposed. A
            mask's pixels are in the range, so it is 0 there; the colour or detail that fits a grey value or a mean can lie
            outside. The result is the nearest image in the range that keeps the known part
            (:func:`~atonce.editing.fit.into_range`), so this is rounding where there is such an image.
        bare: What ``clamped`` would be had the last estimate just been clamped.
        labels: Classes of the images, given or guessed.
    """

    sigmas: tuple[float, ...]
    calls: int
    clamped: float
    bare: float
    labels: tuple[int, ...] | None = None


def edit(
    f: Function,
    known: Known,
    image: Tensor,
    sigmas: Sequence[float],
    noise: Callable[[int], Tensor],
    sigma_end: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    *,
    start: Tensor | None = None,
    callback: Callable[[dict[str, object]], None] | None = None,
) -> tuple[Tensor, EditInfo]:
    """Make what is not known of an image (Song et al. 2023, Algorithm 4).

    x <- start + sigma_1 z; then for each sigma: x <- clamp f(x, sigma), x <- x - P x + P image, and before each further one
    x <- x + sqrt(sigma^2 - sigma_end^2) z. The published notebook adds no noise before the first call, since it takes an index
    for a noise level; the paper's algorithm, and this one, add sigma_1 z.

    A step at a small sigma is, to first order in sigma^2, a step of Langevin dynamics of length sigma^2 for what is unknown
    given what is known. So the results tend to the exact conditional distribution where sigma falls slowly enough, and the bias
    of few steps is that of dynamics that were stopped early (``tests/oracles/test_editing.py`` has the closed form).

    Args:
        f: Consistency function of (x [B, C, H, W], sigma).
        known: What is known.
        image: Images [B, C, H, W] that carry the known part.
        sigmas: Descending noise levels; one network call each.
        noise: Unit normal noise [B, C, H, W] of step i.
        sigma_end: Noise level of f's outputs.
        clip: Range to which every estimate is clamped before the known part is put back, and in which the result lies, or
            ``None``.
        start: Images to which the first noise is added; default: the known part alone, P image.
        callback: Called after each step with ``step``, ``sigma``, ``x0`` (known part put back) and ``calls``; after the last
            one also with ``free`` (before the range was imposed), ``clamped`` and ``bare`` (see :class:`EditInfo`).

    Returns:
        Images [B, C, H, W], and what was done.
    """
    x = known.project(image) if start is None else start
    clamped = bare = 0.0
    for i, sigma in enumerate(sigmas):
        level = sigma if i == 0 else max(sigma**2 - sigma_end**2, 0.0) ** 0.5
        x = f(x + level * noise(i), sigma)
        if clip is not None:
            x = x.clamp(*clip)
        x = known.replace(x, image)
        info: dict[str, object] = {"step": i, "sigma": sigma, "x0": x, "calls": i + 1}
        if i == len(sigmas) - 1:
            free = x
            if clip is not None:
                bare = known.error(free.clamp(*clip), image)
                x = into_range(free, known, image, clip)
            clamped = known.error(x, image)
            info |= {"x0": x, "free": free, "clamped": clamped, "bare": bare}
        if callback is not None:
            callback(info)
    return x, EditInfo(tuple(sigmas), len(sigmas), clamped, bare)
