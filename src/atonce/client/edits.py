"""Every edit of the service as a method; pictures may be PIL images, arrays, paths or bytes."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from atonce.client.images import Images, picture_text
from atonce.client.values import plain
from atonce.core.errors import InputError

if TYPE_CHECKING:
    from atonce.client.images import Picture

Fit = Literal["none", "crop", "pad"]
_PICTURES = ("image", "images", "mask")
_UNDRAWN = ("interpolate",)  # edits without a seed of their own


def edit_body(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The request of an edit: pictures as base64, and a seed, so that sending it twice gives the same images.

    Args:
        kind: Name of the edit.
        fields: Its fields; those that are ``None`` are left out.

    Returns:
        What goes as JSON.

    Raises:
        InputError: A picture is none, or a value no number, text or list of them.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    for name in _PICTURES:
        if name in body:
            several = isinstance(body[name], (list, tuple))
            body[name] = [picture_text(one, name) for one in body[name]] if several else picture_text(body[name], name)
    if kind not in _UNDRAWN:
        body.setdefault("seed", secrets.randbelow(1 << 53))
    return {name: value if name in _PICTURES else plain(value, name) for name, value in body.items()}


class Edits(ABC):
    """The edits, each one request.

    ``fit`` says what to do with a picture of another size than the model's (``none`` refuses, ``crop``, ``pad``). Further
    options that all take: ``model``, ``version``, ``labels``, ``guidance``; and those that draw noise also ``n`` (results for
    each picture), ``seed``, ``steps`` and ``sigmas``. They mean what they mean in :mod:`atonce.edit`.
    """

    @abstractmethod
    def edit(self, kind: str, **fields: Any) -> Images:
        """Send an edit by its name.

        Args:
            kind: For example ``inpaint``.
            fields: The fields of its request, pictures in any form.

        Returns:
            The results; those of one picture stand together.

        Raises:
            ClientError: The server refused or cannot be reached.
        """

    def inpaint(
        self, image: Picture | Sequence[Picture], mask: Picture | None = None, *, fit: Fit = "none", **options: Any
    ) -> Images:
        """Make the pixels of a mask anew; all others keep their bytes.

        Args:
            image: One picture, or a list of several.
            mask: White (or true) where pixels are to be made; default: where the picture is transparent.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("inpaint", image=image, mask=mask, fit=fit, **options)

    def outpaint(
        self,
        image: Picture | Sequence[Picture],
        *,
        size: tuple[int, int] | None = None,
        place: tuple[int, int] | None = None,
        **options: Any,
    ) -> Images:
        """Make the surroundings of a picture; its own pixels keep their bytes.

        Args:
            image: One picture, or a list of several.
            size: Height and width of the result; default the model's.
            place: Row and column of the picture's upper left corner; default the middle.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("outpaint", image=image, size=size, place=place, **options)

    def colorize(self, image: Picture | Sequence[Picture], *, fit: Fit = "none", **options: Any) -> Images:
        """Give a grey picture colours whose grey values are its own.

        Args:
            image: One picture, or a list of several.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("colorize", image=image, fit=fit, **options)

    def upscale(self, image: Picture | Sequence[Picture], factor: int, *, fit: Fit = "none", **options: Any) -> Images:
        """Make a larger picture whose patch means are the pixels of a small one.

        Args:
            image: One small picture, or a list of several.
            factor: How many times higher and wider the result is.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("upscale", image=image, factor=factor, fit=fit, **options)

    def restore(
        self,
        image: Picture | Sequence[Picture],
        mask: Picture | None = None,
        *,
        grey: bool = False,
        factor: int = 1,
        either: bool = False,
        fit: Fit = "none",
        **options: Any,
    ) -> Images:
        """Make what is not known of a picture.

        Args:
            image: One picture, or a list of several.
            mask: White (or true) where pixels are to be made.
            grey: Of the colours only the grey values are known.
            factor: Only means of patches of this side are known.
            either: What any of the parts knows is known, instead of what all of them know together.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        known = {"mask": mask, "grey": grey, "factor": factor, "either": either}
        return self.edit("restore", image=image, **known, fit=fit, **options)

    def stroke(
        self, image: Picture | Sequence[Picture], *, sigma: float | None = None, fit: Fit = "none", **options: Any
    ) -> Images:
        """Turn a sketch of coarse strokes into an image.

        Args:
            image: One sketch, or a list of several.
            sigma: First noise level, the amount of change.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("stroke", image=image, sigma=sigma, fit=fit, **options)

    def variations(
        self, image: Picture | Sequence[Picture], n: int = 8, *, sigma: float | None = None, fit: Fit = "none", **options: Any
    ) -> Images:
        """Make images that are like a given one.

        Args:
            image: One picture, or a list of several.
            n: Results for each.
            sigma: First noise level, the amount of change.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("variations", image=image, n=n, sigma=sigma, fit=fit, **options)

    def local(
        self,
        image: Picture | Sequence[Picture],
        mask: Picture | None = None,
        *,
        sigma: float | None = None,
        fit: Fit = "none",
        **options: Any,
    ) -> Images:
        """Change a picture inside a mask only, keeping its coarse content there.

        Args:
            image: One picture, or a list of several.
            mask: White (or true) where it may change; default: where it is transparent.
            sigma: First noise level, the amount of change.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("local", image=image, mask=mask, sigma=sigma, fit=fit, **options)

    def denoise(
        self, image: Picture | Sequence[Picture], *, sigma: float | None = None, fit: Fit = "none", **options: Any
    ) -> Images:
        """Take white noise away from a picture, in one network call.

        Args:
            image: One picture, or a list of several.
            sigma: Standard deviation of the noise, where from black to white is 2; default: estimated.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.
        """
        return self.edit("denoise", image=image, sigma=sigma, fit=fit, **options)

    def interpolate(
        self,
        images: Sequence[Picture] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        n: int = 8,
        fit: Fit = "none",
        **options: Any,
    ) -> Images:
        """Make the images between two pictures, or between the images of two seeds.

        Args:
            images: Two pictures.
            seeds: Two seeds instead.
            n: Images in all, both ends included.
            fit: What to do with a picture of another size.
            options: See :class:`Edits`.

        Returns:
            The results.

        Raises:
            InputError: Neither or both are given.
        """
        if (images is None) == (seeds is None):
            raise InputError("interpolate needs two pictures (images=) or two seeds (seeds=), one of these")
        given = {"images": None if images is None else list(images), "seeds": None if seeds is None else list(seeds)}
        return self.edit("interpolate", **given, n=n, fit=fit, **options)
