"""What is computed once about a reference and kept: moments and features, by the content of the images and the extractor.

They lie in a folder of the user's (:func:`cache_folder`), each file whole or absent, with a checksum: what is damaged is made
again with a warning. Where nothing can be written everything works as well, only slower. The files that were not used for the
longest time go first when the folder would grow above its limit (:func:`cache_limit`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atonce.core.distribution import all_equal
from atonce.core.errors import InputError, StorageError
from atonce.core.files import sha256_json, write_atomic
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import FeatureStatistics, Moments, joined
from atonce.evaluation.gather import gather, place
from atonce.evaluation.reference import Reference, usable_moments

WORTH_SECONDS = 1.0
"""What took less to compute is not kept: reading and checking a file is no quicker."""

_FOLDER = "references"
_GIB = 1 << 30
_DEFAULT_GIB = 10.0
_ROWS = 4096  # features that are handled at a time
_DAY = 86_400.0


def cache_folder() -> Path:
    """Where things made once are kept: ``ATONCE_CACHE``, else ``atonce`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("ATONCE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "atonce"


def cache_limit() -> int:
    """How large the kept references may grow together: ``ATONCE_CACHE_GIB`` GiB, 10 where it is not set, 0 to keep nothing.

    Returns:
        Bytes.

    Raises:
        InputError: The environment variable is no number from 0.
    """
    text = os.environ.get("ATONCE_CACHE_GIB") or str(_DEFAULT_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not (math.isfinite(gib) and gib >= 0):
        raise InputError(f"the environment's ATONCE_CACHE_GIB is {text!r}, must be a number of GiB from 0: change or unset it")
    return int(gib * _GIB)


def reference_features(
    reference: Reference,
    extractor: Extractor,
    *,
    batch: int = 256,
    sharded: bool = False,
    device: torch.device | str | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of all images of a reference: from the cache, mapped into memory rather than read, or computed now.

    Args:
        reference: What samples are compared with; it needs images.
        extractor: Turns them into features.
        batch: Images taken at a time; changes nothing.
        sharded: All processes of the group call this together and share the work; each gets all features.
        device: Where the extractor works; None: on the CPU.
        callback: Told (done, total) images of this process; not called where nothing has to be computed.

    Returns:
        float32 or float64 [N, D] on the CPU; not to be changed.

    Raises:
        InputError: The reference has no images.
    """
    images = reference.images
    if images is None:
        raise InputError(f"{reference.source.name} holds statistics only, features need its images: give the images")
    key = _key("features", reference, extractor)
    if (found := _look_up(key, {"features"}, sharded)) is not None:
        return found[0]["features"]
    begun = time.monotonic()
    make = lambda first, count: images[first : first + count]
    made = gather(
        make, len(images), extractor, batch=batch, keep_features=True, sharded=sharded, device=device, callback=callback
    ).features
    assert made is not None
    _keep(key, {"features": made}, {}, time.monotonic() - begun, sharded)
    return made


def reference_moments(
    reference: Reference,
    extractor: Extractor,
    *,
    batch: int = 256,
    sharded: bool = False,
    device: torch.device | str | None = None,
    callback: Callable[[int, int], None] | None = None,
    features: Tensor | None = None,
) -> Moments:
    """Mean and covariance of a reference's features: given with it, from the cache, or computed in a stream now.

    Args:
        reference: What samples are compared with.
        extractor: Turns images into features.
        batch: Images taken at a time; changes nothing but the order of sums in float64.
        sharded: All processes of the group call this together and share the work.
        device: Where the extractor works; None: on the CPU.
        callback: Told (done, total) images of this process; not called where nothing has to be computed.
        features: Those of :func:`reference_features` where they are at hand: nothing is extracted twice then.

    Returns:
        The moments, float64, the same on every process.

    Raises:
        InputError: The given statistics have another dimension than the extractor.
    """
    if (given := usable_moments(reference, extractor)) is not None:
        return given
    images = reference.images
    assert images is not None  # usable_moments sees to it
    key = _key("moments", reference, extractor)
    if (found := _look_up(key, {"mean", "covariance"}, sharded)) is not None:
        tensors, facts = found
        return Moments(tensors["mean"], tensors["covariance"], int(facts["count"]))
    begun = time.monotonic()
    if features is not None:
        statistics = FeatureStatistics(extractor.dimension)
        for rows in features.split(_ROWS):
            statistics.update(rows)
    else:
        make = lambda first, count: images[first : first + count]
        statistics = joined(
            gather(
                make, len(images), extractor, batch=batch, blocks=1, sharded=sharded, device=device, callback=callback
            ).blocks
        )
    moments = statistics.moments()
    content = {"mean": moments.mean, "covariance": moments.covariance}
    # Moments of features at hand are quick, but the next evaluation may have no use for the features.
    _keep(key, content, {"count": str(len(images))}, math.inf if features is not None else time.monotonic() - begun, sharded)
    return moments


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Hex SHA-256 of tensors and of what is noted beside them.

    Args:
        tensors: By name; contiguous, on the CPU.
        facts: Words by name.

    Returns:
        The digest.
    """
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checked(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors with a checksum, whole or not at all.

    Args:
        path: A safetensors file.
        tensors: By name.
        facts: Words to be kept beside them.

    Raises:
        StorageError: It could not be written.
    """
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    noted = {**facts, "sha256": checksum(whole, facts)}

    def write(temporary: Path) -> None:
        try:
            save_file(whole, temporary, noted)
        except SafetensorError as problem:  # it wraps what the system said
            raise OSError(str(problem)) from problem

    write_atomic(path, write)


def read_checked(path: Path, names: set[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Read what :func:`write_checked` wrote; tensors are mapped into memory.

    Args:
        path: The file.
        names: The tensors it must hold, or None.

    Returns:
        Tensors and facts; None where there is no such file, and, with a warning, where it is damaged.
    """
    while True:
        before = None
        try:
            before = path.stat()
            with safe_open(path, framework="pt") as file:
                facts = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            sound = facts.pop("sha256", None) == checksum(tensors, facts) and (names is None or set(tensors) == names)
            text = "its content does not fit its checksum"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as problem:
            sound, text = False, " ".join(str(problem).split())
        if sound:
            return tensors, facts
        with contextlib.suppress(OSError):
            after = path.stat()
            # The library opens a file twice; another process may have replaced it in between.
            if before is not None and (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
                continue
        warnings.warn(f"the kept file {path} cannot be used ({text}): it is made again", stacklevel=4)
        return None


def _key(kind: str, reference: Reference, extractor: Extractor) -> str:
    facts = {"kind": kind, "data": reference.source.digest, "extractor": extractor.digest, "dimension": extractor.dimension}
    return f"{kind}-{sha256_json({**facts, 'dtype': 'float64' if kind == 'moments' else 'its own', 'format': 1})}"


def _path(key: str) -> Path:
    return cache_folder() / _FOLDER / f"{key}.safetensors"


def _look_up(key: str, names: set[str], sharded: bool) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What is kept under a key; with several processes only where all of them have the same."""
    path = _path(key)
    found = read_checked(path, names) if cache_limit() else None
    if place(sharded)[1] > 1:
        mine = None if found is None else checksum(*found)
        if not all_equal(mine):
            return None
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: it goes last
    return found


def _keep(key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str], seconds: float, sharded: bool) -> None:
    """Keep what took long, by one process of each machine; a warning where it cannot be kept."""
    limit = cache_limit()
    if not limit or seconds < WORTH_SECONDS or (place(sharded)[0] and os.environ.get("LOCAL_RANK") != "0"):
        return
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > limit:
        text = f"{size / _GIB:.1f} GiB are above the limit of {limit / _GIB:g} GiB (ATONCE_CACHE_GIB)"
        warnings.warn(f"the reference's {key.partition('-')[0]} are not kept: {text}", stacklevel=3)
        return
    path = _path(key)
    try:
        _make_room(path.parent, limit - size)
        write_checked(path, tensors, facts)
    except StorageError as problem:
        warnings.warn(f"the reference's {key.partition('-')[0]} are not kept: {problem}", stacklevel=3)


def _make_room(folder: Path, limit: int) -> None:
    """Remove the files that were not used for the longest time until the rest is below a limit in bytes."""
    kept: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process may have removed it
            kept.append(((status := path.stat()).st_mtime, status.st_size, path))
    for path in folder.glob(".*.tmp"):  # left by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
