"""Denoising at a given noise level, and estimating the level from the image."""

from __future__ import annotations

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.editing.classes import Labels, labels_of, rows_of
from atonce.editing.engine import Callback, calls_of, check_options
from atonce.editing.inputs import image_batch, noise_level
from atonce.model import ConsistencyModel

_NORMAL_MAD = 0.6744897501960817  # median of |z| for a standard normal z


def estimate_sigma(image: Tensor) -> Tensor:
    """Standard deviation of white noise in images, from their finest diagonal differences.

    d = (x_00 - x_01 - x_10 + x_11) / 2 over all neighbouring 2 x 2 pixels has the variance of the noise, and smooth content
    cancels in it; median(|d|) / 0.6745 is robust against the few differences at edges (Donoho and Johnstone 1994).

    It takes fine texture for noise, so it is too high on textured images with little noise, and too low where the noise was
    clipped to the range of images or smoothed by resizing or compression. For true .1, .2, .4 and .8 the median over held-out
    images is .123, .224, .420 and .818 on Fashion-MNIST and .115, .211, .406 and .805 on CIFAR-10. On 8 x 8 digits, which are
    all edges, it says nothing below about 1.

    Args:
        image: float [C, H, W] or [B, C, H, W], at least 2 x 2 pixels.

    Returns:
        float32, a number or [B], on the device of the image.

    Raises:
        InputError: Not such an image.
    """
    x = image_batch(image, (None, None, None), image.device if isinstance(image, Tensor) else torch.device("cpu"), None)
    if min(x.shape[2:]) < 2:
        raise InputError(f"image has {x.shape[2]} x {x.shape[3]} pixels: noise can be estimated from at least 2 x 2")
    d = (x[:, :, 1:, 1:] - x[:, :, 1:, :-1] - x[:, :, :-1, 1:] + x[:, :, :-1, :-1]) / 2
    size = d[0].numel()
    middle = [d.abs().flatten(1).kthvalue(k, dim=1).values for k in ((size + 1) // 2, size // 2 + 1)]  # quantile() has a limit
    sigma = (middle[0] + middle[1]) / 2 / _NORMAL_MAD
    return sigma if image.dim() == 4 else sigma[0]


@torch.no_grad()
def denoise(
    model: ConsistencyModel,
    noisy: Tensor,
    sigma: float | Tensor | None = None,
    *,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Take white noise away in one call, x0 = f(x, sigma) (Song et al. 2023).

    A consistency model gives a likely clean image, not the mean of all that are possible; a denoiser gives the mean, which is
    nearer in squared error and smoother.

    Args:
        model: Any kind of model.
        noisy: Images [C, H, W] or [B, C, H, W]: clean ones plus normal noise, not clipped to the range.
        sigma: Standard deviation of the noise, one number or [B]; ``None`` estimates it (:func:`estimate_sigma`).
        seed: Seed of the noise by which missing classes are guessed; nothing else is drawn.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image, so that shards fit together.
        batch: Images computed at once.
        callback: Called after each part with ``step`` (0), ``sigma`` (the largest), ``x0``, ``calls``, ``labels``, ``first``
            and ``done``.

    Returns:
        float32 images of the same rank. Images whose estimated noise is not above the model's ``sigma_end`` come back as they
        are, in the range.

    Raises:
        InputError: Something does not fit.
    """
    x = image_batch(noisy, model.shape, model.device, None, "noisy")
    n = len(x)
    size = check_options(model, n, labels, guidance, seed, first, batch)
    if sigma is None:
        levels = estimate_sigma(x).clamp(max=model.sigma_max)
    elif not isinstance(sigma, Tensor):
        levels = torch.full((n,), noise_level(model, sigma), device=model.device)
    else:
        levels = sigma.detach().reshape(-1).to(model.device, torch.float32)
        if levels.numel() not in (1, n):
            raise InputError(f"sigma has {levels.numel()} values for {n} images: give one number or one for each image")
        if not bool(((levels > model.sigma_end) & (levels <= model.sigma_max * (1 + 1e-6))).all()):
            shown = ", ".join(f"{float(s):g}" for s in levels[:4])
            raise InputError(f"sigma is {shown}, must be above {model.sigma_end:g} and at most {model.sigma_max:g}")
        levels = levels.expand(n)
    clean = x if model.clip is None else x.clamp(*model.clip)
    label = labels_of(model, labels, clean, first=first, seed=seed, guidance=guidance, batch=size)
    calls = calls_of(model, labels, guidance, 1)
    out = torch.empty_like(x)
    for begin in range(0, n, size):
        part = slice(begin, min(begin + size, n))
        rows = None if label is None else label[part]
        scale = rows_of(guidance, part, n)
        level = levels[part].clamp(min=max(model.sigma_end, model.sigma_min))
        x0 = model(x[part], level, rows, guidance=scale)
        out[part] = torch.where(levels[part, None, None, None] > model.sigma_end, x0, x[part])
        if callback is not None:
            told = {"step": 0, "sigma": float(levels[part].max()), "x0": x0, "calls": calls, "labels": rows}
            callback({**told, "first": first + begin, "done": part.stop})
    if model.clip is not None:
        out = out.clamp(*model.clip)
    return out if noisy.dim() == 4 else out[0]
