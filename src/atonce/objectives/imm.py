"""Inductive moment matching (IMM): groups of samples that two jumps of a flow map lead to are to have one distribution.

Zhou et al. 2025, "Inductive moment matching". No training code was published; what is written here is held against normal data,
where the discrepancy has a closed form (:func:`laplace_mean`). States are variance-exploding, x_t = y + t z, which
changes nothing: the kernel sees distances in units of c_out, and both change alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atonce.objectives.discrete import Terms
from atonce.preconditioning import Preconditioning

Map = Callable[[Tensor, Tensor, Tensor], Tensor]  # f(x [B, C, H, W], sigma [B], to [B])


def moment_matching(
    f: Map,
    y: Tensor,
    z: Tensor,
    t: Tensor,
    r: Tensor,
    s: Tensor,
    *,
    preconditioning: Preconditioning,
    group: int,
    a: int = 1,
    b: float = 5.0,
) -> Terms:
    """w(s, t) mean_ij [k(a_i, a_j) + k(b_i, b_j) - 2 k(a_i, b_j)], a = f(x_t, t, s), b = sg f(x_r, r, s). Zhou et al. 2025.

    x_t and x_r = y + r z share image and noise (the DDIM step from t to r with the image known). M = ``group`` images share t,
    r and s and differ in y and z. k(u, v) = exp(-|u - v| / (D |c_out(t, s)|)): distances are measured in what F can change.
    With one distribution at both ends the mean over different i and j vanishes and is stationary; the pairs i = j, a share 1/M,
    leave the bias of consistency training.

    Args:
        f: The flow map that is trained.
        y: Clean images [B, C, H, W], in whole groups.
        z: Unit normal noise [B, C, H, W].
        t: Noise levels where the first jump starts [B].
        r: Those of the second, s <= r < t [B].
        s: Where both end [B].
        preconditioning: The model's, of kind ``"trigflow"``.
        group: M.
        a: Power of alpha in the weight, 1 or 2.
        b: Shift of the sigmoid in the weight.

    Returns:
        Loss [B], that of its group for each image, and as the distance the root of the group's discrepancy.
    """
    column = (slice(None), *[None] * (y.dim() - 1))
    ends = f(y + t[column] * z, t, s)
    with torch.no_grad():
        goals = f(y + r[column] * z, r, s)
        scale = preconditioning.coefficients(t, s)[1].abs() * y[0].numel()
    mine, theirs = (v.flatten(1).unflatten(0, (-1, group)) for v in (ends, goals))
    width = scale.unflatten(0, (-1, group))[:, :1, None]

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        squared = (u[:, :, None] - v[:, None]).square().sum(-1)
        return torch.exp(-squared.clamp(min=1e-16).sqrt() / width)

    matched = (kernel(mine, mine) + kernel(theirs, theirs) - 2 * kernel(mine, theirs)).mean((1, 2))
    loss = matched.repeat_interleave(group)
    return Terms(weight(t / (t + preconditioning.sigma_data), a, b) * loss, loss.detach().clamp(min=0).sqrt())


def weight(t: Tensor, a: int, b: float) -> Tensor:
    """1/2 sigmoid(b - lambda) (-dlambda/dt) alpha^a / (alpha^2 + sigma^2). Zhou et al. 2025.

    With alpha = 1 - t, sigma = t (noise in units of sigma_data) lambda = 2 ln((1 - t) / t), and -dlambda/dt = 2 / (t (1 - t)).

    Args:
        t: Flow times sigma / (sigma + sigma_data) [B].
        a: 1 or 2.
        b: Shift.

    Returns:
        [B].
    """
    log_snr = 2 * ((1 - t) / t).log()
    return torch.sigmoid(b - log_snr) / (t * (1 - t)) * (1 - t) ** a / ((1 - t) ** 2 + t**2)


def group_times(u: Tensor, sigma_min: float, sigma_max: float, sigma_data: float, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw t and s uniformly in flow time, s below t, and r one small step below t. Zhou et al. 2025.

    The flow time is sigma / (sigma + sigma_data). r is lower than t by an equal step of eta = sigma / sigma_data, a 2^k-th of
    its range, but not below s.

    Args:
        u: Uniform numbers [B, 2].
        sigma_min: Lowest noise level.
        sigma_max: Highest noise level.
        sigma_data: Standard deviation of the data.
        k: Logarithm of the number of steps.

    Returns:
        t, r and s as noise levels, float64 [B], s <= r < t.
    """
    low, high = (level / (level + sigma_data) for level in (sigma_min, sigma_max))
    time = low + (high - low) * u[:, 0]
    earlier = low + (time - low) * u[:, 1]
    t, s = (sigma_data * v / (1 - v) for v in (time, earlier))
    return t, torch.maximum(s, t - (sigma_max - sigma_min) / 2**k), s


def laplace_mean(variance: Tensor, rate: Tensor) -> Tensor:
    """E exp(-rate |Z|) of a normal Z with mean 0: exp(rate^2 v / 2) erfc(rate sqrt(v / 2)), for tests against normal data.

    Args:
        variance: v, any shape.
        rate: Broadcastable with it.

    Returns:
        Of the broadcast shape.
    """
    return torch.special.erfcx(rate * (variance / 2).sqrt())
