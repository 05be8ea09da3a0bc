"""Images as files, and files as answers. The bytes depend on the images and on how they were made, never on the time."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atonce.core.images import to_uint8
from atonce.reports.outputs import npz_bytes, picture_name
from atonce.reports.pictures import MARK, grid, png_bytes, webp_bytes
from atonce.serving.schemas import Answer, EditAnswer, Format, ImageAnswer, Seconds

MEDIA: dict[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "npz": "application/x-npz",
    "zip": "application/zip",
    "json": "application/json",
}
"""Content types of what is sent."""

_QUALITY = 95  # of JPEG, the one lossy format; colours keep their resolution
_HEADER_IMAGES = 256  # more labels would make a header too long for some proxies


@dataclass(frozen=True, eq=False)
class Made:
    """Images and how they were made.

    Attributes:
        kind: ``generate`` or the name of an edit.
        model: Name of the model.
        version: Its version.
        images: uint8 [n, C, H, W].
        seeds: Seed of each.
        indices: Index of each, that is ``first`` where it is made alone.
        labels: Class of each, or ``None``.
        names: Names of the model's classes, or ``None``.
        seed: The seed of the request; ``None`` where there were several.
        sigmas: Noise levels of the calls.
        calls: Network calls for each image.
        queue: Seconds of waiting.
        network: Seconds of computing.
        facts: What an edit says besides (fields of :class:`EditAnswer`).
        backend: What ran the network.
    """

    kind: str
    model: str
    version: str
    images: Tensor
    seeds: Sequence[int | None]
    indices: Sequence[int]
    labels: Sequence[int] | None
    names: Sequence[str] | None
    seed: int | None
    sigmas: Sequence[float]
    calls: int
    queue: float = 0.0
    network: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    backend: str = ""

    def about(self, i: int) -> dict[str, Any]:
        """What the file of image ``i`` says about itself."""
        label = None if self.labels is None else self.labels[i]
        facts = {"kind": self.kind, "model": self.model, "version": self.version}
        return facts | {"seed": self.seeds[i], "index": self.indices[i], "label": label, "sigmas": list(self.sigmas)}


@dataclass(frozen=True)
class Body:
    """An answer, ready to be sent."""

    content: bytes
    media: str
    headers: dict[str, str]
    seconds: float  # of encoding


def quantised(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, on the CPU."""
    return to_uint8(images).cpu()


def encode(images: Tensor, form: Format, facts: dict[str, Any] | None = None, labels: Sequence[int] | None = None) -> bytes:
    """One file: an image, a grid of several, or an array.

    Args:
        images: uint8 [C, H, W] or [N, C, H, W].
        form: png, webp (lossless), jpeg or npz (``arr_0``, uint8 [N, H, W, C], and ``arr_1``, labels).
        facts: What the file says about how it was made.
        labels: Classes of the images, for npz.

    Returns:
        The content.
    """
    batch = images if images.dim() == 4 else images[None]
    if form == "npz":
        return npz_bytes(batch, None if labels is None else torch.tensor(list(labels)), facts)
    picture = (_flat(batch[0]) if len(batch) == 1 else grid(batch)).contiguous()
    text = json.dumps(facts) if facts else ""
    if form == "png":
        return png_bytes(picture, text)
    if form == "webp":
        return webp_bytes(picture, text)
    from PIL import Image

    content = io.BytesIO()
    said = f"{MARK} {text}".strip()
    Image.fromarray(picture.numpy()).save(content, format="JPEG", quality=_QUALITY, subsampling=0, comment=said)
    return content.getvalue()


def as_base64(content: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(content).decode("ascii")


def body(made: Made, form: Format, sent: str, request_id: str | None) -> Body:
    """Images in the form that was asked for.

    Args:
        made: The images.
        form: How they are written.
        sent: ``json``, ``binary`` (one as itself, several as a zip), ``grid`` or ``zip``.
        request_id: Of the request.

    Returns:
        The answer.
    """
    begun = time.perf_counter()
    if sent == "json":
        content, media = _json(made, form, request_id, begun), "json"
    elif form != "npz" and (sent == "zip" or (len(made.images) > 1 and sent == "binary")):
        content, media = _zip(made, form), "zip"
    else:
        content, media = encode(made.images, form, _about_all(made), made.labels), form
    seconds = time.perf_counter() - begun
    return Body(content, MEDIA[media], headers(made, seconds) | _disposition(made, media), seconds)


def headers(made: Made, seconds: float) -> dict[str, str]:
    """What an answer that is no JSON says about its images.

    Args:
        made: The images.
        seconds: Time of writing them.

    Returns:
        Headers by name.
    """
    found = {"X-Model": made.model, "X-Model-Version": made.version, "X-Calls": str(made.calls)}
    found["X-Sigmas"] = ",".join(f"{sigma:.9g}" for sigma in made.sigmas)
    if made.backend:
        found["X-Backend"] = made.backend
    if made.seed is not None:
        found["X-Seed"] = str(made.seed)
    elif len(made.seeds) <= _HEADER_IMAGES:
        found["X-Seeds"] = ",".join(map(str, made.seeds))
    if made.labels is not None and len(made.labels) <= _HEADER_IMAGES:
        found["X-Labels"] = ",".join(map(str, made.labels))
    timing = {"queue": made.queue, "network": made.network, "encode": seconds}
    found["Server-Timing"] = ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in timing.items())
    return {name: re.sub(r"[^\x20-\x7e]", "?", value) for name, value in found.items()}


def file_name(made: Made, suffix: str) -> str:
    """A name for the file of an answer, of harmless characters."""
    seed = "" if made.seed is None else f"-{made.seed}"
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{made.model}-{made.kind}{seed}-{made.indices[0]}") + f".{suffix}"


def _disposition(made: Made, media: str) -> dict[str, str]:
    return {} if media == "json" else {"Content-Disposition": f'inline; filename="{file_name(made, media)}"'}


def _json(made: Made, form: Format, request_id: str | None, begun: float) -> bytes:
    images, data = [], None
    for i in range(len(made.images)):
        label = None if made.labels is None else made.labels[i]
        name = made.names[label] if made.names is not None and label is not None and label >= 0 else None
        file = None if form == "npz" else as_base64(encode(made.images[i], form, made.about(i)))
        images.append(ImageAnswer(index=made.indices[i], seed=made.seeds[i], label=label, name=name, data=file))
    if form == "npz":
        data = as_base64(encode(made.images, form, _about_all(made), made.labels))
    common: dict[str, Any] = {
        "request_id": request_id,
        "created": int(time.time()),
        "kind": made.kind,
        "model": made.model,
        "version": made.version,
        "n": len(made.images),
        "format": form,
        "seed": made.seed,
        "sigmas": list(made.sigmas),
        "calls": made.calls,
        "images": images,
        "data": data,
        "seconds": Seconds(queue=made.queue, network=made.network, encode=time.perf_counter() - begun),
    }
    answer = Answer(**common) if made.kind == "generate" else EditAnswer(**common, **made.facts)
    return answer.model_dump_json().encode()


def _about_all(made: Made) -> dict[str, Any]:
    about = made.about(0)
    if len(made.images) == 1:
        return about
    if len(made.images) > _HEADER_IMAGES:  # the comment of a zip has 64 KiB
        return {key: value for key, value in about.items() if key != "label"}
    labels = None if made.labels is None else list(made.labels)
    seeds = {"seed": made.seed} if made.seed is not None else {"seeds": list(made.seeds)}
    return {key: value for key, value in about.items() if key not in ("seed", "label")} | seeds | {"labels": labels}


def _zip(made: Made, form: Format) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for i in range(len(made.images)):
            member = picture_name(i).replace(".png", f".{form}")
            archive.writestr(zipfile.ZipInfo(member), encode(made.images[i], form, made.about(i)))
        archive.comment = f"{MARK} {json.dumps(_about_all(made))}".encode()
    return content.getvalue()


def _flat(image: Tensor) -> Tensor:
    """One image uint8 [C, H, W] as [H, W] or [H, W, 3]."""
    return image[0] if len(image) == 1 else torch.movedim(image, 0, 2)
