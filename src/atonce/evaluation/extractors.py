"""Extractors: what turns images into the features that distances are computed on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError
from atonce.core.files import sha256_json
from atonce.core.records import Source
from atonce.data.dataset import ImageData
from atonce.networks import efficientnet

NAMES = ("auto", "pixels", efficientnet.NAME, "classifier", "inception", "dinov2")
INCEPTION = "Inception-v3 (FID)"
"""Name of the one extractor whose Fréchet distance is called FID."""
SMALLEST_PHOTOGRAPH = 32
"""Side in pixels from which on networks trained on photographs say something about RGB images."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features, with what a record must say about it.

    Attributes:
        name: What people call it.
        digest: Hex SHA-256 of its definition and weights; equal digests give equal features.
        dimension: Features of each image, D.
        function: uint8 images [B, C, H, W] to features [B, D], float32 or float64.
        seen_in_training: It took part in training the model that is judged (as a loss, say): never rank by it then.
        batch: Images that go through the function together, for the sake of memory and of rounding (see
            :mod:`atonce.evaluation.gather`); None where it does not matter.
        head: Features [B, D] to the scores (logits) [B, K] of the classes that the network was trained on, for the Inception
            Score and the like; None where there are none.
    """

    name: str
    digest: str
    dimension: int
    function: Callable[[Tensor], Tensor]
    seen_in_training: bool = False
    batch: int | None = None
    head: Callable[[Tensor], Tensor] | None = None

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
        with _full_precision():
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


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No autocast and no TF32, whatever the caller has set: equal digests must give equal features."""
    cuda = torch.cuda.is_available()
    matmul = torch.backends.cuda.matmul.allow_tf32
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda") if cuda else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if cuda:
            flags = torch.backends.cudnn
            stack.enter_context(
                flags.flags(enabled=flags.enabled, benchmark=False, deterministic=flags.deterministic, allow_tf32=False)
            )
            torch.backends.cuda.matmul.allow_tf32 = False
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", matmul)
        yield


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
    network = efficientnet.load()
    efficientnet.channels_last(network)

    @torch.no_grad()
    def function(images: Tensor) -> Tensor:
        network.to(images.device)
        x = efficientnet.resized(images.float() / 255)
        return network(x.contiguous(memory_format=torch.channels_last))

    weight, bias = (value.detach().double() for value in (network.classes, network.offsets))
    head = lambda features: F.linear(features.to("cpu", torch.float64), weight, bias)
    return Extractor("EffNet-Lite0", efficientnet.DIGEST, efficientnet.FEATURES, function, batch=batch, head=head)


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
        name: One of these, or an extractor, which is given back as it is:
            ``"auto"`` is ``"effnet-lite0"`` for RGB images of 32 x 32 pixels and more where its package is installed, else
            ``"pixels"``;
            ``"pixels"`` are the values themselves;
            ``"effnet-lite0"`` is EfficientNet-Lite0 with the ImageNet weights of a pip package, which needs no download;
            ``"classifier"`` is trained on ``data``;
            ``"inception"`` is the Inception of FID, its weights downloaded or given: ``"inception:FILE"``;
            ``"dinov2"`` is DINOv2 ViT-L/14, downloaded or given: ``"dinov2:FOLDER"``.
        shape: (C, H, W) of the images.
        data: The labelled data set that a classifier learns from.
        batch: Images that go through the extractor together; None: its own number.

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
    kind, _, place = (automatic(shape) if name == "auto" else name).partition(":")
    if kind not in NAMES or (place and kind not in ("inception", "dinov2")):
        raise InputError(f"extractor {name!r} is unknown: choose one of {', '.join(NAMES)}, or give an atonce Extractor")
    if kind in (efficientnet.NAME, "inception", "dinov2") and shape[0] not in (1, 3):
        raise InputError(f"extractor {kind} takes grey or RGB images, got {list(shape)}: use pixels")
    # What imports this file is imported where it is used.
    if kind == "pixels":
        found = pixels(shape)
    elif kind == efficientnet.NAME:
        found = effnet_lite0()
    elif kind == "inception":
        from atonce.evaluation.inception import inception

        found = inception(place or None)
    elif kind == "dinov2":
        from atonce.evaluation.dinov2 import dinov2

        found = dinov2(place or None)
    else:
        if data is None:
            raise InputError("extractor 'classifier' is trained on the data that are judged: give it a labelled data set")
        from atonce.evaluation.classifier import classifier_extractor

        found = classifier_extractor(data)
    return found if batch is None else dataclasses.replace(found, batch=batch)


def automatic(shape: tuple[int, int, int]) -> str:
    """The name that ``"auto"`` stands for.

    Args:
        shape: (C, H, W) of the images.

    Returns:
        ``"effnet-lite0"`` for RGB images of at least 32 x 32 pixels, where its package is installed; ``"pixels"`` else.
    """
    if shape[0] != 3 or min(shape[1:]) < SMALLEST_PHOTOGRAPH:
        return "pixels"
    try:
        efficientnet.weights_path()
    except MissingExtraError:
        return "pixels"
    return efficientnet.NAME
