"""Which noise levels an edit visits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from atonce.core.errors import InputError
from atonce.editing.inputs import noise_level
from atonce.model import ConsistencyModel
from atonce.sampling.times import check_steps, check_times

# The paper's noise levels for strokes, at sigma_data = 0.5 (Song et al. 2023): indices 16 and 20 of its grid of 40.
STROKE = 5.380004 / 0.5
_STROKE_RATIO = 2.240440 / 5.380004

_HIGH, _LOW = 5.0, 0.2  # of the restarts, in units of sigma_data


def edit_times(model: ConsistencyModel, steps: int, sigmas: Sequence[float] | Tensor | None) -> list[float]:
    """Noise levels of an edit that starts from noise: sigma_max, then evenly in ln sigma from 5 to 0.2 sigma_data.

    Args:
        model: The model.
        steps: How many, 1 or more.
        sigmas: Levels that a caller chose instead, descending.

    Returns:
        The levels, descending.

    Raises:
        InputError: ``steps`` is below 1, or a level does not fit.
    """
    check_steps(steps)
    if sigmas is not None:
        return check_times(sigmas, model.sigma_end, model.sigma_max)
    if steps == 1:
        return [model.sigma_max]
    return [model.sigma_max, *spread(model, min(_HIGH * model.sigma_data, model.sigma_max / 2), steps - 1)]


def spread(model: ConsistencyModel, high: float, count: int) -> list[float]:
    """``count`` levels, evenly in ln sigma from ``high`` to 0.2 sigma_data, or to a tenth of ``high`` where that is lower."""
    if count == 1:
        return [high]
    low = max(min(_LOW * model.sigma_data, high / 10), model.sigma_end + (high - model.sigma_end) * 1e-3)
    return [high * (low / high) ** (i / (count - 1)) for i in range(count)]


def renoise_times(
    model: ConsistencyModel,
    sigma: float | None,
    default: float,
    steps: int,
    sigmas: Sequence[float] | Tensor | None,
    *,
    even: bool = False,
) -> list[float]:
    """Noise levels of an edit that starts from an image: ``sigma``, then smaller ones in the ratio of the paper's two (.416).

    Args:
        model: The model.
        sigma: The first level; ``None`` for the default.
        default: The default in units of sigma_data.
        steps: How many, 1 or more. In the paper's ratio, those that would not be above sigma_end are left out.
        sigmas: All levels instead of ``sigma`` and ``steps``.
        even: Evenly in ln sigma down to 0.2 sigma_data instead, for edits that keep a part (:func:`spread`).

    Returns:
        The levels, descending.

    Raises:
        InputError: A level does not fit, or both ``sigma`` and ``sigmas`` are given.
    """
    check_steps(steps)
    if sigmas is not None:
        if sigma is not None:
            raise InputError("sigma and sigmas are both given: sigmas says it all, leave sigma out")
        return check_times(sigmas, model.sigma_end, model.sigma_max)
    first = min(default * model.sigma_data, model.sigma_max) if sigma is None else noise_level(model, sigma)
    if even:
        return spread(model, first, steps)
    return [level for level in (first * _STROKE_RATIO**i for i in range(steps)) if level > model.sigma_end]
