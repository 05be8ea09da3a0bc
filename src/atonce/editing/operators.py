"""What is known of an image: orthogonal projectors for masks, grey values and patch means, and their combinations.

Song et al. 2023 (Algorithm 4) write an editing task as an orthogonal change of coordinates A and a set of coordinates that are
known. All that the algorithm ever uses of it is the orthogonal projector P onto the known coordinates, so P is what stands
here: for a mask it copies pixels, for grey values it is w w^T / |w|^2 at each pixel, for patch means it replicates the mean. No
basis has to be built, and any factor and any weights are equally cheap.

Each piece is one function, ``replace(x, y) = x - P x + P y``: x with the known part of y. Combinations need nothing else:

    what both know (product of the projectors):        replace_a(x, replace_b(x, y))
    what either knows (Pa + Pb - Pa Pb):               replace_a(replace_b(x, y), y)

Both are projectors only where Pa and Pb commute; other combinations are refused.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atonce.core.checks import numbers, whole
from atonce.core.errors import InputError

GREY = (0.2989, 0.5870, 0.1140)  # the weights of the paper; they sum to .9999


@dataclass(frozen=True, eq=False)
class Known(abc.ABC):
    """What is known of an image [B, C, H, W], as an orthogonal projector P.

    Made by :func:`pixels`, :func:`grey`, :func:`averages` and :func:`nothing`; ``a & b`` is what both know, ``a | b`` what
    either knows.
    """

    @abc.abstractmethod
    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        """X with the known part of y: x - P x + P y, for images [B, C, H, W].

        Where single pixels are known they are copied, so they keep every bit.
        """

    def project(self, x: Tensor) -> Tensor:
        """P x: the shortest image that has the known part of x, [B, C, H, W]."""
        return self.replace(torch.zeros_like(x), x)

    def error(self, x: Tensor, y: Tensor) -> float:
        """How far x is from knowing what y knows: the largest entry of |P x - P y|."""
        return float(self.project(x - y).abs().max()) if x.numel() else 0.0

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images that this does not fit.

        Args:
            shape: Shape [B, C, H, W] of the images.

        Raises:
            InputError: Mask, channels or factor do not fit.
        """
        if len(shape) != 4:
            raise InputError(f"images of shape {list(shape)} must be [B, C, H, W]")

    def rows(self, part: slice) -> Known:
        """The same for some images of a batch: those of ``part``."""
        return self

    def _pieces(self) -> tuple[Known, ...]:
        return (self,)

    def _copies(self) -> bool:
        """Whether known values are copied, bit for bit."""
        return False

    def __and__(self, other: Known) -> Known:
        if not isinstance(other, Known):
            return NotImplemented
        _must_commute(self, other)
        # The one that copies is applied last, so that what is copied stays as it is.
        return _Both(self, other) if self._copies() or not other._copies() else _Both(other, self)

    def __or__(self, other: Known) -> Known:
        if not isinstance(other, Known):
            return NotImplemented
        _must_commute(self, other)
        return _Either(self, other) if self._copies() or not other._copies() else _Either(other, self)


def pixels(mask: Tensor) -> Known:
    """Pixels outside a mask are known, with all their channels.

    Args:
        mask: bool [H, W], [1, H, W] or [B, 1, H, W], true where pixels are to be made.

    Returns:
        The projector.

    Raises:
        InputError: The mask is not bool or has another shape.
    """
    return _Pixels(_mask(mask))


def grey(weights: Sequence[float] = GREY) -> Known:
    """The grey value w . x of every pixel is known; the colour is to be made.

    Args:
        weights: One finite weight for each channel, not all 0.

    Returns:
        The projector.

    Raises:
        InputError: The weights are not finite, or all 0.
    """
    values = tuple(numbers(weights, "grey weights"))
    if not values or not all(math.isfinite(w) for w in values) or not any(values):
        raise InputError(f"grey weights are {values}: give one finite number for each channel, not all 0")
    return _Grey(values)


def averages(factor: int) -> Known:
    """The mean of every patch of ``factor`` x ``factor`` pixels is known, for each channel; detail is to be made.

    Args:
        factor: Side of a patch, a whole number of at least 1 that divides height and width.

    Returns:
        The projector.

    Raises:
        InputError: The factor is not a whole number of at least 1.
    """
    return _Averages(whole(factor, "factor", 1))


def nothing() -> Known:
    """Nothing is known: P = 0."""
    return _Nothing()


def from_grey(gray: Tensor, weights: Sequence[float] = GREY) -> Tensor:
    """The shortest image whose grey value is given: w g / |w|^2.

    Args:
        gray: Grey values [B, 1, H, W].
        weights: One weight for each channel.

    Returns:
        [B, C, H, W]. Its values need not lie in the range of images; it is there to be the known part of one.
    """
    w = torch.tensor(weights, dtype=torch.float64)
    return gray * (w / w.square().sum()).to(gray).reshape(1, -1, 1, 1)


def to_grey(image: Tensor, weights: Sequence[float] = GREY) -> Tensor:
    """Grey values w . x [B, 1, H, W] of images [B, C, H, W]."""
    return (image * torch.tensor(weights, dtype=torch.float64).to(image).reshape(1, -1, 1, 1)).sum(1, keepdim=True)


def from_averages(small: Tensor, factor: int) -> Tensor:
    """The shortest image whose patch means are given: every pixel of ``small`` [..., h, w] becomes a patch."""
    return small.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def to_averages(image: Tensor, factor: int) -> Tensor:
    """Means of patches: [..., H, W] to [..., H / factor, W / factor]."""
    *lead, height, width = image.shape
    return image.reshape(*lead, height // factor, factor, width // factor, factor).mean((-3, -1))


# ---- the pieces


@dataclass(frozen=True, eq=False)
class _Nothing(Known):
    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        return x

    def _pieces(self) -> tuple[Known, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class _Pixels(Known):
    mask: Tensor  # bool [B or 1, 1, H, W], true where pixels are to be made

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), x, y.to(x.dtype))

    def check(self, shape: Sequence[int]) -> None:
        if tuple(self.mask.shape[2:]) != tuple(shape[2:]) or self.mask.shape[0] not in (1, shape[0]):
            raise InputError(
                f"the mask has shape {list(self.mask.shape)}, the images {list(shape)}: "
                f"give one mask [{shape[2]}, {shape[3]}], or one for each image [{shape[0]}, 1, {shape[2]}, {shape[3]}]"
            )

    def rows(self, part: slice) -> Known:
        return self if self.mask.shape[0] == 1 else replace(self, mask=self.mask[part])

    def _copies(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class _Grey(Known):
    weights: tuple[float, ...]

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        return x + from_grey(to_grey(y - x, self.weights), self.weights)

    def check(self, shape: Sequence[int]) -> None:
        if shape[1] != len(self.weights):
            raise InputError(f"grey values of {len(self.weights)} channels are known, but the images have {shape[1]}")


@dataclass(frozen=True, eq=False)
class _Averages(Known):
    factor: int

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        return x + from_averages(to_averages(y - x, self.factor), self.factor)

    def check(self, shape: Sequence[int]) -> None:
        if shape[2] % self.factor or shape[3] % self.factor:
            fit = [k for k in range(2, min(shape[2], shape[3]) + 1) if shape[2] % k == 0 and shape[3] % k == 0]
            raise InputError(
                f"factor {self.factor} does not divide images of {shape[2]} x {shape[3]}: "
                f"possible are {', '.join(map(str, fit)) or 'none but 1'}"
            )


@dataclass(frozen=True, eq=False)
class _Both(Known):
    last: Known
    inner: Known

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last.replace(x, self.inner.replace(x, y))

    def check(self, shape: Sequence[int]) -> None:
        self.last.check(shape)
        self.inner.check(shape)

    def rows(self, part: slice) -> Known:
        return replace(self, last=self.last.rows(part), inner=self.inner.rows(part))

    def _pieces(self) -> tuple[Known, ...]:
        return (*self.last._pieces(), *self.inner._pieces())

    def _copies(self) -> bool:
        return self.last._copies() and self.inner._copies()


@dataclass(frozen=True, eq=False)
class _Either(_Both):
    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last.replace(self.inner.replace(x, y), y)

    def _copies(self) -> bool:
        return self.last._copies()


# ---- which pieces commute


def _mask(mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"the mask is {found}, must be a bool tensor that is true where pixels are to be made (mask > 0.5)")
    if mask.dim() == 2:
        return mask[None, None]
    if mask.dim() == 3 and mask.shape[0] == 1:
        return mask[None]
    if mask.dim() == 4 and mask.shape[1] == 1:
        return mask
    raise InputError(f"the mask has shape {list(mask.shape)}, must be [H, W], [1, H, W] or [B, 1, H, W]")


def _must_commute(a: Known, b: Known) -> None:
    """Every piece of a with every piece of b: then so do all products and sums of them."""
    for one, other in itertools.product(a._pieces(), b._pieces()):
        for p, q in ((one, other), (other, one)):
            if isinstance(p, _Averages) and isinstance(q, _Pixels):
                _must_be_aligned(q.mask, p.factor)
            if isinstance(p, _Averages) and isinstance(q, _Averages) and p.factor % q.factor and q.factor % p.factor:
                raise InputError(
                    f"patch means of factors {p.factor} and {q.factor} cannot be combined: one must divide the other"
                )
            if isinstance(p, _Grey) and isinstance(q, _Grey) and not _parallel(p.weights, q.weights):
                raise InputError("grey values of different weights cannot be combined: give both the same weights")


def _must_be_aligned(mask: Tensor, factor: int) -> None:
    height, width = mask.shape[2:]
    whole = height % factor == 0 and width % factor == 0
    if not whole or not torch.equal(from_averages(mask[:, :, ::factor, ::factor], factor), mask):
        raise InputError(
            f"the mask does not follow the patches of {factor} x {factor} pixels, so it cannot be combined with their means: "
            "mask whole patches"
        )


def _parallel(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    if len(a) != len(b):
        return False
    dot, norms = sum(u * v for u, v in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
    return abs(abs(dot) - norms) <= 1e-12 * norms
