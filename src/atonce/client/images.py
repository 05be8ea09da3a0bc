"""What a client hands in and gets back: pictures of any kind in, images as numpy arrays out."""

from __future__ import annotations

import base64
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atonce.core.errors import DataError, InputError
from atonce.core.files import storage_errors, write_bytes, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

    # An array is [H, W] or [C, H, W]: uint8, bool, or float in [-1, 1]; bytes are those of a file.
    Picture = Image | NDArray[Any] | bytes | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Images:
    """Images and everything that is needed to make them again.

    Attributes:
        images: uint8 [n, C, H, W].
        seeds: Seed of each.
        indices: Index of each (``first`` of a request that makes it alone).
        labels: Class of each, or ``None`` for a model without classes.
        names: Name of each one's class, or ``None``.
        model: Name of the model.
        version: Its version.
        sigmas: Noise levels of the network calls.
        calls: Network calls for each image.
        facts: The rest of the answer: ``seconds``, ``request_id``, and what an edit says besides.
    """

    images: NDArray[np.uint8]
    seeds: list[int]
    indices: list[int]
    labels: list[int] | None
    names: list[str] | None
    model: str
    version: str
    sigmas: list[float]
    calls: int | None
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def pil(self) -> list[Image]:
        """The images for PIL: grey ones in mode L, others RGB.

        Returns:
            One for each.

        Raises:
            InputError: They have other than 1 or 3 channels.
        """
        from PIL import Image

        channels = self.images.shape[1]
        if channels not in (1, 3):
            raise InputError(f"pictures have 1 or 3 channels, these have {channels}: use .images")
        return [Image.fromarray(image[0] if channels == 1 else np.moveaxis(image, 0, 2)) for image in self.images]

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each image as PNG, and ``images.json`` with what is needed to make them again.

        Args:
            folder: Where; made where it is missing. Files of an earlier call with the same names are replaced.

        Returns:
            The pictures' paths.

        Raises:
            StorageError: The folder cannot be written.
        """
        folder = Path(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for place, picture in enumerate(self.pil()):
            paths.append(folder / f"{place:06d}.png")
            write_bytes(paths[-1], png(picture))
        told = {
            name: getattr(self, name) for name in ("model", "version", "sigmas", "calls", "seeds", "indices", "labels", "names")
        }
        write_json(folder / "images.json", {**told, **self.facts, "files": [path.name for path in paths]})
        return paths

    @classmethod
    def of_answer(cls, answer: Mapping[str, Any]) -> Images:
        """The images of a server's JSON answer in the format npz."""
        with np.load(io.BytesIO(base64.b64decode(answer["data"])), allow_pickle=False) as arrays:
            images = np.ascontiguousarray(np.moveaxis(arrays["arr_0"], 3, 1))
        known = ("images", "data", "model", "version", "sigmas", "calls", "n", "format")
        facts = {name: value for name, value in answer.items() if name not in known}
        return cls._made(images, answer["images"], answer, facts)

    @classmethod
    def of_file(cls, path: Path) -> Images:
        """The images of a job's result, a zip or an npz.

        Args:
            path: The file.

        Returns:
            The images.

        Raises:
            DataError: It is no such file, or damaged.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(archive.read("manifest.json"))
                entries = manifest["images"]
                if "arr_0.npy" in archive.namelist():
                    with archive.open("arr_0.npy") as file:
                        whole = np.lib.format.read_array(file, allow_pickle=False)
                    images = np.ascontiguousarray(np.moveaxis(whole, 3, 1))
                else:
                    images = np.stack([_read_picture(archive.read(entry["file"])) for entry in entries])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as problem:
            raise DataError(f"{path} is no result of a job, or damaged: {problem}") from problem
        return cls._made(images, entries, manifest, {"request": manifest.get("request")})

    @classmethod
    def _made(
        cls, images: NDArray[np.uint8], entries: Sequence[Mapping[str, Any]], told: Mapping[str, Any], facts: dict[str, Any]
    ) -> Images:
        has_labels = all(entry["label"] is not None for entry in entries)
        return cls(
            images=images,
            seeds=[entry["seed"] for entry in entries],
            indices=[entry["index"] for entry in entries],
            labels=[entry["label"] for entry in entries] if has_labels else None,
            names=[str(entry["name"]) for entry in entries] if has_labels else None,
            model=told["model"],
            version=told["version"],
            sigmas=list(told.get("sigmas") or []),
            calls=told.get("calls"),
            facts=facts,
        )


def png(picture: Image) -> bytes:
    """A PIL image as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def picture_text(picture: Any, name: str = "image") -> str:
    """A picture as base64, as requests carry it; files go as they are.

    Args:
        picture: A PIL image, an array [H, W], [1, H, W] or [3, H, W] (uint8, bool, or float in [-1, 1]), a path, or bytes.
        name: What to call it in messages.

    Returns:
        Base64 of a picture file.

    Raises:
        InputError: It is something else.
        DataError: The file cannot be read.
    """
    if isinstance(picture, (bytes, bytearray, memoryview)):
        content = bytes(picture)
    elif isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise DataError(f"{name} {path} cannot be read: {problem.strerror or problem}") from problem
    elif hasattr(picture, "save") and hasattr(picture, "mode"):  # PIL, without importing it
        content = png(picture)
    else:
        content = png(_from_array(picture, name))
    return base64.b64encode(content).decode("ascii")


def _from_array(picture: Any, name: str) -> Image:
    from PIL import Image

    values = np.asarray(picture)
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values[0] if values.shape[0] == 1 else np.moveaxis(values, 0, 2)
    elif values.ndim != 2:
        raise InputError(f"{name} has shape {values.shape}: give [H, W], [1, H, W] or [3, H, W], a PIL image, a path or bytes")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and np.abs(values).max(initial=0.0) <= 1.0 + 1e-6):
            raise InputError(
                f"{name} has numbers outside of -1 to 1: floats are read as in atonce.edit; give uint8 for 0 to 255"
            )
        values = np.clip(values * 127.5 + 128.0, 0, 255).astype(np.uint8)  # as everywhere: to_uint8
    elif values.dtype != np.uint8:
        raise InputError(f"{name} is an array of {values.dtype}: give uint8 (0 to 255), bool, or floats in -1 to 1")
    return Image.fromarray(np.ascontiguousarray(values))


def _read_picture(content: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        values = np.asarray(picture)
    return values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)
