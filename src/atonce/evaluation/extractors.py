"""Extractors: what turns images into the features that distances are computed on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.core.records import Source

NAMES = ("auto", "pixels")


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features, with what a record must say about it.

    Attributes:
        name: What people call it.
        digest: Hex SHA-256 of its definition and weights; equal digests give equal features.
        dimension: Features of each image, D.
        function: uint8 images [B, C, H, W] to features [B, D], float32 or float64.
        seen_in_training: It took part in training the model that is judged (as a loss, say): never rank by it then.
    """

    name: str
    digest: str
    dimension: int
    function: Callable[[Tensor], Tensor]
    seen_in_training: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: uint8 [B, C, H, W]. Other types are refused, so that nothing is measured before it is quantised.

        Returns:
            Features [B, D].

        Raises:
            InputError: The images are not uint8 or the function gave another shape than it promised.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"an extractor takes uint8 images [B, C, H, W], got {images.dtype} {list(images.shape)}: use to_uint8"
            )
        features = self.function(images)
        if features.shape != (images.shape[0], self.dimension):
            raise InputError(
                f"extractor {self.name} gave features {list(features.shape)} for {images.shape[0]} images, "
                f"expected [{images.shape[0]}, {self.dimension}]"
            )
        return features

    def source(self) -> Source:
        """What a record says about this extractor."""
        return Source(self.name, self.digest, seen_in_training=self.seen_in_training)


def pixels(shape: tuple[int, int, int]) -> Extractor:
    """The pixels themselves, x / 127.5 - 1 in float64: exact and honest for small images, blind to meaning.

    Args:
        shape: (C, H, W) of the images.

    Returns:
        An extractor with C·H·W features.
    """

    def function(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != shape:
            raise InputError(f"pixel features are set up for images {list(shape)}, got {list(images.shape[1:])}")
        return images.to("cpu", torch.float64).flatten(1) / 127.5 - 1.0

    digest = sha256_json({"extractor": "pixels", "scale": "x / 127.5 - 1", "shape": list(shape)})
    return Extractor("pixels", digest, math.prod(shape), function)


def open_extractor(name: str | Extractor, shape: tuple[int, int, int]) -> Extractor:
    """The extractor of a name.

    Args:
        name: ``"auto"`` (pixels), ``"pixels"``, or an extractor, which is given back as it is.
        shape: (C, H, W) of the images.

    Returns:
        The extractor.

    Raises:
        InputError: The name is unknown.
    """
    if isinstance(name, Extractor):
        return name
    if name in ("auto", "pixels"):
        return pixels(shape)
    raise InputError(f"extractor {name!r} is unknown: choose one of {', '.join(NAMES)}, or give an atonce Extractor")
