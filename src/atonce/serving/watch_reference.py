"""The reference of the quality watch: made once for each version from its approved weights, and kept on the disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import write_atomic
from atonce.core.streams import Stream, bits
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import FeatureStatistics, Moments
from atonce.evaluation.kernel import polynomial_kernel
from atonce.evaluation.neighbours import nearest, radii
from atonce.exchange.open import open_model
from atonce.exchange.registry import is_registry_entry
from atonce.exchange.registry_files import check_digests, read_pointer
from atonce.model import ConsistencyModel
from atonce.model_files import load_model, weights_digest
from atonce.serving.watch_statistics import COMPONENTS, NEAR, ROUNDS, Reference, Rows, pixel_facts, raw_features, rows_of

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.host import Host

FORMAT = 1
DRAWS = 200
"""Draws from the calibration."""
KERNEL = 2048
"""Images of the reference that the kernel distance uses, at most."""
GROUPS = 16
"""Groups into which the reference's features are divided, for their shares."""

_log = logging.getLogger("atonce.serving.watch")


def build_reference(images: Tensor, labels: Tensor | None, classes: int, extractor: Extractor, size: int) -> Reference:
    """The reference of an approved model.

    Args:
        images: uint8 [2 · 8 · size, C, H, W]: the pool, made from the approved weights.
        labels: The classes that were asked for, int64; None for an unconditional model.
        classes: How many classes there are.
        extractor: Turns images into features.
        size: Images of a round.

    Returns:
        The reference.

    Raises:
        InputError: There are fewer images than that.
    """
    half = ROUNDS * size
    if len(images) < 2 * half:
        raise InputError(f"a reference for rounds of {size} images needs {2 * half} images, got {len(images)}")
    raw, pixels = raw_features(images[: 2 * half], extractor), pixel_facts(images[: 2 * half])
    centre = raw[:half].mean(0)
    covariance = torch.cov(raw[:half].T)
    _, vectors = torch.linalg.eigh(covariance)
    directions = vectors[:, -min(COMPONENTS, vectors.shape[1]) :].flip(1).contiguous()
    whole = rows_of(raw, pixels, labels, centre, directions)
    reference, calibration = whole[slice(0, half)], whole[slice(half, 2 * half)]
    gathered = FeatureStatistics(whole.features.shape[1])
    gathered.update(reference.features)
    kernel = reference.features[: min(half, KERNEL)]
    groups, shares = _groups(reference.features)
    enough = labels is not None and classes > 1 and half >= 20 * classes
    made = Reference(
        size=size,
        centre=centre,
        directions=directions,
        moments=gathered.moments(),
        variance=max(float(gathered.covariance().trace()), 1e-12),
        kernel=kernel,
        kernel_scale=float(polynomial_kernel(kernel, kernel).mean().abs()),
        groups=groups,
        shares=shares,
        near=_near(reference.features, size),
        weights=_classifier(reference, classes) if enough else None,
        usual={},
    )
    calibration = made.beside(calibration)
    draws = [made.measure(calibration[_draw(half, size, k)]) for k in range(DRAWS)]
    return dataclasses.replace(made, usual={name: _scatter([each[name] for each in draws]) for name in draws[0]})


def _scatter(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, standard deviation and skewness of a round, from draws without repetition of 1 in 8 of the calibration.

    Such draws share images, so they scatter less than rounds do: the variance of a mean of n out of N is smaller by 1 - n/N.
    And the calibration's own mean is off by what 8 rounds' images scatter. Both are put back: a factor of
    sqrt((1 + 1/8) / (1 - 1/8)).
    """
    found = np.array(values)
    deviation = float(found.std(ddof=1)) * math.sqrt((1 + 1 / ROUNDS) / (1 - 1 / ROUNDS))
    skew = float(stats.skew(found)) if deviation > 1e-12 else 0.0
    return float(found.mean()), max(deviation, 1e-9), min(max(skew, -2.0), 2.0)


def _draw(many: int, few: int, index: int) -> Tensor:
    """``few`` out of ``many``, without repetition; the ``index``-th draw."""
    words = bits(0, torch.tensor([index]), many, Stream.EVALUATE, step=0x3A7C)[0]
    return torch.argsort(words, stable=True)[:few]


def _near(features: Tensor, size: int) -> float:
    """The distance that a small share of images have to their nearest neighbour among as many as a round has."""
    found = torch.cat([radii(part, 1) for part in features.split(size) if len(part) > 1])
    return float(torch.quantile(found, NEAR))


def _groups(features: Tensor) -> tuple[Tensor, Tensor]:
    from sklearn.cluster import KMeans

    count = min(GROUPS, len(features) // 20)
    found = KMeans(count, n_init=3, random_state=0).fit(features.numpy())
    centres = torch.from_numpy(np.ascontiguousarray(found.cluster_centers_, np.float64))
    shares = torch.bincount(nearest(features, centres)[1], minlength=count).double() / len(features)
    return centres, shares


def _classifier(rows: Rows, classes: int) -> Tensor:
    """Fisher's linear discriminant of the labels, with a little shrinkage: weights and offsets [D + 1, K]."""
    assert rows.labels is not None
    x, y = rows.features, rows.labels
    present = torch.bincount(y, minlength=classes).clamp(min=1)[:, None]
    means = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add_(0, y, x) / present
    within = torch.cov((x - means[y]).T)
    within += 1e-3 * within.trace() / len(within) * torch.eye(len(within), dtype=x.dtype)
    weights = torch.linalg.solve(within, means.T)
    return torch.cat([weights, -(means * weights.T).sum(1)[None] / 2])


def approved_weights(engine: Engine, host: Host) -> ConsistencyModel:
    """The model of a version as its files hold it, which checksums protect; not as the engine holds it.

    Files that are no registry's may have been replaced since the version was loaded. The version is then named by the digest of
    what was loaded, or by the one who loaded it; where the files are surely others, what the engine holds is the best there is.

    Args:
        engine: The engine that serves it.
        host: Its host, which knows where it was read.

    Returns:
        A plain model on the engine's device.
    """
    held, version = engine.model, engine.version
    place = next((str(each["source"]) for each in host.versions() if each["version"] == version), None)
    if place is not None and is_registry_entry(place):
        entry = Path(place).expanduser()
        pointer = read_pointer(entry)
        if version in pointer.digests:
            return load_model(check_digests(entry, pointer, version, whole=True)).to(held.device)
    found = None if place is None else open_model(place).to(held.device)
    if found is not None:
        files = weights_digest(found)
        if files.startswith(version) or files == weights_digest(held):
            return found
        _log.warning(
            "%s %s: the files it was loaded from have changed; what is served is its own reference", engine.name, version
        )
    return ConsistencyModel(held.config, held.network, card=held.card)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A reference with what belongs to it.

    Attributes:
        reference: The reference.
        repeats: Images of the approved weights uint8 [G, C, H, W]: the pool's first ones, which the watch asks for again.
        labels: Their classes [G]; empty for an unconditional model.
        seed: Seed of the pool.
        model: Digest of the approved weights.
        extractor: Digest of the extractor.
    """

    reference: Reference
    repeats: Tensor
    labels: Tensor
    seed: int
    model: str
    extractor: str

    def save(self, path: Path) -> None:
        """Write it as an ``.npz`` without pickles, whole or not at all."""
        reference = self.reference
        arrays = {name: getattr(reference, name).numpy() for name in _ARRAYS}
        arrays |= {"mean": reference.moments.mean.numpy(), "covariance": reference.moments.covariance.numpy()}
        arrays |= {"repeats": self.repeats.numpy(), "labels": self.labels.numpy()}
        if reference.weights is not None:
            arrays["weights"] = reference.weights.numpy()
        facts = {name: getattr(reference, name) for name in _NUMBERS} | {"usual": dict(reference.usual)}
        facts |= {"format": FORMAT, "seed": self.seed, "model": self.model, "extractor": self.extractor}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)

        write_atomic(path, write)

    @classmethod
    def load(cls, path: Path, model: str, extractor: str, size: int) -> Kept | None:
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            model: Digest of the approved weights that are wanted.
            extractor: Digest of the extractor.
            size: Images of a round.

        Returns:
            The reference; None where there is none, it is damaged, or it is of something else, and so is to be made again.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = json.loads(str(file["facts"]))
                if (facts["format"], facts["model"], facts["extractor"], facts["size"]) != (FORMAT, model, extractor, size):
                    return None
                found = {name: torch.from_numpy(np.array(file[name])) for name in file.files if name != "facts"}
            reference = Reference(
                moments=Moments(found["mean"], found["covariance"], ROUNDS * size),
                weights=found.get("weights"),
                usual={str(k): (float(a), float(b), float(c)) for k, (a, b, c) in facts["usual"].items()},
                size=size,
                variance=float(facts["variance"]),
                kernel_scale=float(facts["kernel_scale"]),
                near=float(facts["near"]),
                **{name: found[name] for name in _ARRAYS},
            )
            if set(reference.statistics) != set(reference.usual):
                return None
            return cls(reference, found["repeats"], found["labels"], int(facts["seed"]), model, extractor)
        except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


_ARRAYS = ("centre", "directions", "kernel", "groups", "shares")
_NUMBERS = ("size", "variance", "kernel_scale", "near")
