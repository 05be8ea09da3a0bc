"""Extractors: what turns images into the features that distances are computed on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.core.records import Source
from atonce.data.dataset import ImageData
from atonce.networks import efficientnet

NAMES = ("auto", "pixels", efficientnet.NAME, "classifier")


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features, with what a record must say about it.

    Attributes:
        name: What people call it.
        digest: Hex SHA-256 of its definition and weights; equal digests give equal features.
        dimension: Features of each image, D.
        function: uint8 images [B, C, H, W] to features [B, D], float32 or float64.
        seen_in_training: It took part in training the model that is judged (as a loss, say): never rank by it then.
        batch: Images that go through the function at once at most, for the sake of memory; None for no limit.
    """

    name: str
    digest: str
    dimension: int
    function: Callable[[Tensor], Tensor]
    seen_in_training: bool = False
    batch: int | None = None

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
        if self.batch is None or images.shape[0] <= self.batch:
            features = self.function(images)
        else:
            features = torch.cat([self.function(part) for part in images.split(self.batch)])
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


def effnet_lite0(batch: int = 32) -> Extractor:
    """Pooled features of EfficientNet-Lite0 (ImageNet), for a Fréchet distance called FD-EffNet-Lite0; it is not FID.

    Images are resized to 224 x 224, grey ones repeated to RGB. About 20 images a second on two CPU cores, thousands on a GPU.

    Args:
        batch: Images at once, at most; 32 of them take about 0.3 GB.

    Returns:
        An extractor with 1,280 features, float32, which works on the device of the images.

    Raises:
        MissingExtraError: The package with the weights is not installed.
        InputError: ``batch`` is below 1.
    """
    if batch < 1:
        raise InputError(f"the extractor's batch must be at least 1, got {batch}")
    network = efficientnet.channels_last(efficientnet.load())

    @torch.no_grad()
    def function(images: Tensor) -> Tensor:
        network.to(images.device)
        x = efficientnet.resized(images.float() / 255)
        return network(x.contiguous(memory_format=torch.channels_last))

    return Extractor("EffNet-Lite0", efficientnet.DIGEST, efficientnet.FEATURES, function, batch=batch)


def seen_digests(card: Mapping[str, Any] | None) -> frozenset[str]:
    """Digests of the extractors that took part in training a model, as far as its card says.

    Args:
        card: ``model.card``. Its ``recipe`` names the distance; ``extractors_seen``, where it is there, lists digests, also
            those of the models it was initialised or distilled from.

    Returns:
        The digests; of ``lpips`` only what ``extractors_seen`` holds, since its weights come from a file.
    """
    if not isinstance(card, Mapping):
        return frozenset()
    listed = card.get("extractors_seen")
    seen = {str(digest) for digest in listed} if isinstance(listed, list | tuple | set | frozenset) else set()
    recipe = card.get("recipe")
    if isinstance(recipe, Mapping) and recipe.get("distance") == efficientnet.NAME:
        seen.add(efficientnet.DIGEST)
    return frozenset(seen)


def mark_seen(extractor: Extractor, seen: Collection[str]) -> Extractor:
    """The extractor, flagged where training has seen it.

    Args:
        extractor: The extractor.
        seen: Digests, as :func:`seen_digests` gives them.

    Returns:
        The same, with ``seen_in_training`` true where its digest is among them or it was flagged before.
    """
    return dataclasses.replace(extractor, seen_in_training=extractor.seen_in_training or extractor.digest in seen)


def open_extractor(
    name: str | Extractor, shape: tuple[int, int, int], data: ImageData | None = None, batch: int | None = None
) -> Extractor:
    """The extractor of a name.

    Args:
        name: ``"auto"`` (pixels), ``"pixels"``, ``"effnet-lite0"``, ``"classifier"`` (trained on ``data``), or an extractor,
            which is given back as it is.
        shape: (C, H, W) of the images.
        data: The labelled data set that a classifier learns from.
        batch: Images that go through the extractor at once at most; None: its own limit.

    Returns:
        The extractor.

    Raises:
        InputError: The name is unknown, or the extractor cannot be used on such images.
        MissingExtraError: It needs a package that is not installed.
    """
    if isinstance(name, Extractor):
        return name
    if batch is not None and batch < 1:
        raise InputError(f"the extractor's batch must be at least 1, got {batch}")
    if name in ("auto", "pixels"):
        found = pixels(shape)
    elif name == efficientnet.NAME:
        if shape[0] not in (1, 3):
            raise InputError(f"extractor {name} takes grey or RGB images, got {list(shape)}: use pixels")
        found = effnet_lite0()
    elif name == "classifier":
        if data is None:
            raise InputError("extractor 'classifier' is trained on the data that are judged: give it a labelled data set")
        from atonce.evaluation.classifier import classifier_extractor  # it imports this file

        found = classifier_extractor(data)
    else:
        raise InputError(f"extractor {name!r} is unknown: choose one of {', '.join(NAMES)}, or give an atonce Extractor")
    return found if batch is None else dataclasses.replace(found, batch=batch)
