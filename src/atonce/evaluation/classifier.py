"""The classifier of a data set: a small convolutional network that judges samples of it and gives features of meaning.

Trained on any small labelled set in seconds to minutes on one thread, and kept in a cache. It sees noise, shuffled pixels and
averages of two images in training too and learns to be unsure of them, so that its confidence says something about samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.optimize import minimize_scalar
from torch import Tensor

from atonce.core.errors import DataError, InputError, StorageError
from atonce.core.files import sha256_json, write_bytes
from atonce.core.progress import Progress
from atonce.core.streams import permutation
from atonce.data.dataset import ImageData, Moments, require_labels
from atonce.data.order import epoch_index
from atonce.evaluation import neighbours
from atonce.evaluation.cache import cache_folder
from atonce.evaluation.extractors import Extractor

FEATURES = 64  # width of the penultimate layer
CONFIDENT = 0.9  # a sample counts as recognised where the likeliest class has more than this probability
WIDTHS = (16, 32, 64)
SMALLEST, LARGEST = 4, 64  # sides of the images in pixels
PER_CLASS, IN_ALL = 10, 100  # images that are needed at least
_CHUNK = 1000  # images of one forward pass outside training
_BATCH = 100  # images that go through the extractor together, always
_SHOWN_FROM = 100_000  # images seen from which on progress is shown

_trained: dict[str, Classifier] = {}
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier; it works on the CPU in float32.

    Attributes:
        name: Name of the data it was trained on.
        shape: (C, H, W) of its images.
        classes: Number of classes K.
        weights: Parameters by name, with the mean and standard deviation its input is normalised by.
        temperature: What logits are divided by before the softmax, fitted on held-out images (Guo et al. 2017, section 4.2).
        accuracy: Share of held-out images (a tenth of each class of the data given) whose class it finds.
        digest: Hex SHA-256 of its definition, weights, temperature and accuracy.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    weights: Mapping[str, Tensor]
    temperature: float
    accuracy: float
    digest: str

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees.

        Args:
            images: uint8 [B, C, H, W].

        Returns:
            float32 [B, 64].

        Raises:
            InputError: The images have another type or shape than those it was trained on.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            found = f"{images.dtype} {list(images.shape)}"
            raise InputError(
                f"the classifier of {self.name} takes uint8 images [B, C, H, W] of {list(self.shape)}, got {found}"
            )
        with torch.autocast("cpu", enabled=False):
            return torch.cat([_features(self.weights, chunk.cpu()) for chunk in images.split(_CHUNK)])

    def probabilities(self, images: Tensor) -> Tensor:
        """Calibrated class probabilities.

        Args:
            images: uint8 [B, C, H, W].

        Returns:
            float64 [B, K]; rows sum to 1.
        """
        return self.scores(self.features(images)).softmax(1)

    def scores(self, features: Tensor) -> Tensor:
        """Calibrated logits of the classes: features [B, 64] to float64 [B, K]."""
        weight, bias = self.weights["head.weight"].double(), self.weights["head.bias"].double()
        return F.linear(features.cpu().double(), weight, bias) / self.temperature

    def predictions(self, images: Tensor) -> Tensor:
        """The likeliest class of each image: uint8 [B, C, H, W] to int64 [B]."""
        return self.probabilities(images).argmax(1)


def classifier(data: ImageData, *, seed: int = 0, cache: Path | None = None, quiet: bool = False) -> Classifier:
    """The classifier of a data set: from memory, from the cache on disk, or trained now.

    The result is a function of data and seed on one machine, whatever the number of threads (training takes one). Another
    kind of processor may round differently and give another digest.

    Args:
        data: Labelled images, 4 to 64 pixels a side, at least 100, two classes, and ten of each class that occurs.
        seed: Of the weights, the order and the part that is held out.
        cache: Folder of the cache; default :func:`cache_folder`. A damaged file there is replaced with a warning.
        quiet: Show no progress.

    Returns:
        The classifier.

    Raises:
        DataError: The data have no labels, one class, too few images, or images too small or too large.
        InputError: The seed is no whole number from 0 to 2^63 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise InputError(f"the seed of a classifier must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    _check(data)
    definition = _definition(data, seed)
    key = sha256_json({"data": data.digest(), "definition": definition})
    path = (cache or cache_folder()) / "classifiers" / f"{key}.safetensors"
    with _lock:
        found = _trained.get(key) or _read(path, definition, data.name)
        if found is None:
            found = _train(data, definition, quiet)
            _keep(path, found, definition)
        _trained[key] = found
    return dataclasses.replace(found, name=data.name)


def classifier_extractor(data: ImageData, *, seed: int = 0, quiet: bool = False) -> Extractor:
    """The classifier of a data set as an extractor of 64 features; arguments and errors as in :func:`classifier`."""
    judge = classifier(data, seed=seed, quiet=quiet)
    return Extractor(f"classifier of {data.name}", judge.digest, FEATURES, judge.features, batch=_BATCH, head=judge.scores)


def confident_share(judge: Classifier, images: Tensor) -> float:
    """Share of images [B, C, H, W], at least one, whose likeliest class has a probability above 0.9."""
    if not images.shape[0]:
        raise InputError("there are no images to classify: give at least one")
    return float((judge.probabilities(images).amax(1) > CONFIDENT).to(torch.float64).mean())


def confidence(judge: Classifier, images: Tensor, held_out: Tensor) -> float:
    """Share of samples the classifier is sure of over that share among real images it has not seen; 1 is as good as real.

    Args:
        judge: The classifier.
        images: Samples, uint8 [B, C, H, W].
        held_out: Real images that it was not trained on, uint8 [M, C, H, W].

    Returns:
        The ratio; above 1 where samples are more typical than real images.

    Raises:
        InputError: There are no images, they do not fit, or the classifier is sure of no real one.
    """
    real = confident_share(judge, held_out)
    if not real:
        raise InputError(f"the classifier of {judge.name} is sure of no real image: give more of them, of its data")
    return confident_share(judge, images) / real


def class_shares(judge: Classifier, images: Tensor) -> tuple[float, ...]:
    """Share of each class among the predictions: uint8 images [B, C, H, W], at least one, to K shares that sum to 1."""
    return neighbours.class_shares(judge.predictions(images), judge.classes)


def label_accuracy(judge: Classifier, images: Tensor, labels: Tensor | Sequence[int]) -> float:
    """Share of images that look like the class they were asked to be.

    Args:
        judge: The classifier.
        images: uint8 [B, C, H, W], at least one.
        labels: The classes asked for, [B], each from 0 to K - 1.

    Returns:
        From 0 to 1.

    Raises:
        InputError: Labels and images do not fit each other or the classifier.
    """
    asked = torch.as_tensor(labels).cpu()
    if asked.is_floating_point() or asked.shape != images.shape[:1] or not len(asked):
        raise InputError(f"labels must be whole numbers for {len(images)} images, got {asked.dtype} {list(asked.shape)}")
    low, high = int(asked.min()), int(asked.max())
    if low < 0 or high >= judge.classes:
        raise InputError(f"labels must lie between 0 and {judge.classes - 1}, got {low} to {high}")
    return float((judge.predictions(images) == asked).to(torch.float64).mean())


def _check(data: ImageData) -> None:
    counts = require_labels(data).bincount()
    sides, fewest = data.shape[1:], int(counts[counts > 0].min())
    if min(sides) < SMALLEST or max(sides) > LARGEST:
        text = f"a classifier is made for sides of {SMALLEST} to {LARGEST} pixels: give a size"
        raise DataError(f"{data.name} has images of {sides[0]} x {sides[1]} pixels, {text}")
    if len(data) < IN_ALL or fewest < PER_CLASS:
        found = f"{len(data)} images, {fewest} of its rarest class"
        raise DataError(f"{data.name} has {found}: a classifier needs at least {IN_ALL}, and {PER_CLASS} of every class")


def _definition(data: ImageData, seed: int) -> dict[str, Any]:
    """Everything but the data that decides what is trained, as JSON values."""
    return {
        "version": 1,
        "shape": list(data.shape),
        "classes": data.num_classes,
        "layers": _layers(data.shape),
        "features": FEATURES,
        # Twenty times each image, but enough steps for small sets, and a minute or two for large ones.
        "images": min(max(20 * len(data), 24_000), 300_000 if max(data.shape[1:]) <= 16 else 600_000),
        "batch": 64 if len(data) < 10_000 else 128,
        "rate": 3e-3,
        "warmup": 0.05,  # share of the training
        "decay": 0.05,
        "outliers": "noise 1/16, shuffled 1/16, averaged 1/16",
        "held_out": "every tenth of each class",
        "seed": seed,
    }


def _layers(shape: Sequence[int]) -> list[list[int]]:
    """[in, out, kernel, stride] of each convolution: large images are halved at once, then halved while a side exceeds 4."""
    channels, side = shape[0], max(shape[1:])
    layers = []
    for number, width in enumerate(WIDTHS):
        kernel, stride = (5, 2) if number == 0 and side > 16 else (3, 2 if number and side > 4 else 1)
        layers.append([channels, width, kernel, stride])
        channels, side = width, -(-side // stride)
    return layers


def _shapes(definition: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name."""
    _, height, width = definition["shape"]
    shapes: dict[str, tuple[int, ...]] = {"normalise": (2,)}
    for number, (before, after, kernel, stride) in enumerate(definition["layers"]):
        shapes |= {f"conv{number}.weight": (after, before, kernel, kernel), f"conv{number}.bias": (after,)}
        height, width = -(-height // stride), -(-width // stride)
    shapes |= {"features.weight": (FEATURES, WIDTHS[-1] * height * width), "features.bias": (FEATURES,)}
    return shapes | {"head.weight": (definition["classes"], FEATURES), "head.bias": (definition["classes"],)}


def _features(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] to float32 [B, 64]."""
    mean, std = weights["normalise"]
    x = (images.to(torch.float32) / 127.5 - 1.0 - mean) / std
    for number, (_, _, kernel, stride) in enumerate(_layers(images.shape[1:])):
        x = F.conv2d(x, weights[f"conv{number}.weight"], weights[f"conv{number}.bias"], stride=stride, padding=kernel // 2)
        x = F.relu(x)
    return F.silu(F.linear(x.flatten(1), weights["features.weight"], weights["features.bias"]))


def _train(data: ImageData, definition: Mapping[str, Any], quiet: bool) -> Classifier:
    """Fit, then calibrate and count on what was held out."""
    total = definition["images"]
    bar = Progress(f"training the classifier of {data.name}", total, "img", quiet=quiet or total < _SHOWN_FROM)
    training, held_out = _split(data, definition["seed"])
    truth = require_labels(data)[held_out]
    with _alone(), bar:
        weights = _fit(data.subset(training), definition, data.statistics(), bar)
        judge = Classifier(data.name, data.shape, data.num_classes, weights, 1.0, 0.0, "")
        probabilities = judge.probabilities(data.images[held_out])
    accuracy = float((probabilities.argmax(1) == truth).to(torch.float64).mean())
    temperature = _temperature(probabilities.clamp(min=1e-300).log(), truth)
    digest = _digest(definition, weights, temperature, accuracy)
    return dataclasses.replace(judge, temperature=temperature, accuracy=accuracy, digest=digest)


def _split(data: ImageData, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and to hold out: of each class a random tenth is held out, at least one."""
    labels = require_labels(data)
    order = permutation(seed, (1 << 24) - 1, len(data))  # an epoch that no training reaches
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    rank = torch.arange(len(data)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[rank % 10 != 0], order[rank % 10 == 0]


def _fit(data: ImageData, definition: Mapping[str, Any], moments: Moments, bar: Progress) -> dict[str, Tensor]:
    """AdamW with a cosine rate after a short warm-up; outliers are part of each batch."""
    labels = require_labels(data)
    seed, batch, classes = definition["seed"], definition["batch"], definition["classes"]
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in _shapes(definition).items():
        gain = 0 if name.endswith("bias") else 1 if name.startswith("head") else 2  # He et al. 2015 before a rectifier
        scale = math.sqrt(gain / math.prod(shape[1:]))
        weights[name] = torch.randn(shape, generator=generator, dtype=torch.float32) * scale
    weights["normalise"] = torch.tensor([moments.mean, max(moments.std, 1e-3)], dtype=torch.float32)
    learned = [weight.requires_grad_() for name, weight in weights.items() if name != "normalise"]
    optimiser = torch.optim.AdamW(learned, lr=definition["rate"], weight_decay=definition["decay"], fused=True)
    steps = definition["images"] // batch
    for step in range(steps):
        rows = epoch_index(seed, step * batch, batch, len(data))
        images, targets = _with_outliers(data.images[rows], F.one_hot(labels[rows], classes).to(torch.float32), generator)
        warm = min(1.0, (step + 1) / (definition["warmup"] * steps))
        optimiser.param_groups[0]["lr"] = definition["rate"] * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = F.linear(_features(weights, images), weights["head.weight"], weights["head.bias"])
        loss = F.cross_entropy(logits, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 19 or step == steps - 1:
            bar.update(definition["images"] * (step + 1) // steps, f"loss {float(loss.detach()):.3f}")
    return {name: weight.detach() for name, weight in weights.items()}


def _with_outliers(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch and what it must be unsure of: uniform noise and shuffled pixels (no class), averages of two images (half each).

    Outlier exposure (Hendrycks et al. 2019) with cross-entropy to the uniform distribution; the averages are mixup
    (Zhang et al. 2018) with both weights 1/2, since a blend of images is what a one-step model gives where it fails.
    """
    few, (_, *shape) = len(images) // 16, images.shape
    noise = torch.randint(0, 256, (few, *shape), generator=generator, dtype=torch.uint8)
    flat = images[2 * few : 3 * few].flatten(2)
    places = torch.rand((few, 1, flat.shape[2]), generator=generator, dtype=torch.float32).argsort(2)
    shuffled = flat.gather(2, places.expand_as(flat)).reshape(few, *shape)
    averaged = ((images[:few].to(torch.int16) + images[few : 2 * few]) // 2).to(torch.uint8)
    none = torch.full((2 * few, targets.shape[1]), 1 / targets.shape[1], dtype=torch.float32)
    both = (targets[:few] + targets[few : 2 * few]) / 2
    return torch.cat([images, noise, shuffled, averaged]), torch.cat([targets, none, both])


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest cross-entropy on held-out images (Guo et al. 2017).

    Targets are smoothed by 1 / (M + 2) as in Platt (1999): with few images that are all right, the best would be zero else.
    """
    smooth = 1.0 / (len(logits) + 2)
    targets = torch.full_like(logits, smooth / (logits.shape[1] - 1)).scatter_(1, labels[:, None], 1.0 - smooth)
    loss = lambda log_temperature: float(F.cross_entropy(logits / math.exp(log_temperature), targets))
    return math.exp(float(minimize_scalar(loss, bounds=(math.log(0.2), math.log(20.0)), method="bounded").x))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One thread, gradients and full precision, whatever the caller has set: the result must not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _digest(definition: Mapping[str, Any], weights: Mapping[str, Tensor], *numbers: float) -> str:
    digest = hashlib.sha256(json.dumps([definition, *numbers], sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name}{tuple(weights[name].shape)}".encode() + weights[name].numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _keep(path: Path, judge: Classifier, definition: Mapping[str, Any]) -> None:
    facts = {"definition": definition, "temperature": judge.temperature, "accuracy": judge.accuracy, "digest": judge.digest}
    try:
        write_bytes(path, save(dict(judge.weights), {"classifier": json.dumps(facts)}))
    except StorageError as problem:
        warnings.warn(f"the classifier of {judge.name} is not kept: {problem}", stacklevel=3)


def _read(path: Path, definition: Mapping[str, Any], name: str) -> Classifier | None:
    """A kept classifier; None where there is none, with a warning where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["classifier"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        temperature, accuracy, digest = facts["temperature"], facts["accuracy"], facts["digest"]
        shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
        if shapes != _shapes(definition) or digest != _digest(definition, weights, temperature, accuracy):
            raise ValueError("its content does not fit its checksum")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as problem:
        warnings.warn(f"the kept classifier {path} cannot be used ({problem}): it is trained again", stacklevel=3)
        return None
    return Classifier(name, tuple(definition["shape"]), definition["classes"], weights, temperature, accuracy, digest)
