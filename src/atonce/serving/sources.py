"""Where served models come from: a folder, a gallery name, a hub id, or an entry of a registry with a version in use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from atonce.core.errors import InputError, ModelFileError
from atonce.exchange.gallery import gallery_names
from atonce.exchange.hub import fetch, looks_like_hub_id
from atonce.exchange.open import open_model
from atonce.exchange.registry import current, folder_of, history, is_registry_entry
from atonce.exchange.sniff import sniff_file
from atonce.model import ConsistencyModel
from atonce.model_files import weights_digest
from atonce.training.options import pick_device

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Source:
    """What is served under a name.

    Attributes:
        name: Its name in requests.
        place: A registry entry, or what ``atonce.load`` takes.
    """

    name: str
    place: str

    @property
    def entry(self) -> bool:
        """Whether it is an entry of a registry, whose version may change."""
        return is_registry_entry(self.place)


@dataclass(frozen=True)
class Opened:
    """A model that was read, and which version it is.

    Attributes:
        model: The model, on its device.
        version: The registry's number, or the start of the digest of the weights: the same on every replica.
        place: Where it was read.
    """

    model: ConsistencyModel
    version: str
    place: str


def parse(text: str) -> Source:
    """``NAME=SOURCE``, or a source whose last part is its name.

    Args:
        text: As given on the command line.

    Returns:
        The source.

    Raises:
        InputError: There is no source, or the name cannot stand in an address.
    """
    name, separator, place = text.partition("=")
    if not separator:
        name, place = Path(text.rstrip("/")).name, text
    if not place.strip():
        raise InputError(f"{text!r} names no model: give SOURCE or NAME=SOURCE, for example digits")
    if not _NAME.fullmatch(name):
        raise InputError(f"a model is to be called {name[:90]!r}: give NAME=SOURCE, 1 to 80 letters, digits, '.', '_' or '-'")
    return Source(name, place)


def open_source(place: str, device: str, version: str | None = None) -> Opened:
    """Read a model. Nothing that is read is executed.

    Args:
        place: A registry entry, or what ``atonce.load`` takes.
        device: auto, cpu, cuda or cuda:N.
        version: What to call it; default: see :class:`Opened`.

    Returns:
        The model on its device.

    Raises:
        InputError: The device is not there, or the model makes no pictures.
        ModelFileError: There is no such model, or its files are damaged.
    """
    known, folder = current(place) if is_registry_entry(place) else (None, place)
    if version is not None and not _NAME.fullmatch(version):
        raise InputError(f"a version is to be called {version[:90]!r}: 1 to 80 letters, digits, '.', '_' or '-'")
    return _opened(place, folder, device, version or known)


def open_version(place: str, device: str, version: str) -> Opened:
    """Read a version of a registry's entry, whether it is the one in use or not.

    Args:
        place: The entry.
        device: auto, cpu, cuda or cuda:N.
        version: The registry's number.

    Returns:
        The model on its device.

    Raises:
        InputError: The device is not there, or the model makes no pictures.
        ModelFileError: There is no such version, or its files are damaged or were changed.
    """
    return _opened(place, folder_of(place, version), device, version)


def _opened(place: str, folder: Path | str, device: str, version: str | None) -> Opened:
    chosen = pick_device(device)
    _refuse_pickles(str(folder))
    model = open_model(folder)
    if model.shape != model.image_shape or model.shape[0] not in (1, 3) or model.clip != (-1.0, 1.0):
        raise InputError(f"{place} makes data {list(model.shape)} that are no grey or RGB pictures: it cannot be served")
    return Opened(model.to(chosen), version or weights_digest(model)[:12], place)


def _refuse_pickles(place: str) -> None:
    """A server opens no pickle, not even by a reader that executes nothing: they are converted once, by hand."""
    path = Path(place).expanduser()
    if place in gallery_names() and not path.is_dir():
        return
    if not path.exists() and looks_like_hub_id(place):
        path = fetch(place)
    if path.is_file():
        pickled = sniff_file(path).format != "safetensors"
    else:
        files = [file for file in path.rglob("*") if file.suffix in (".safetensors", *_PICKLES)] if path.is_dir() else []
        pickled = bool(files) and all(file.suffix in _PICKLES for file in files)
    if pickled:
        remedy = f"convert it once, atonce.load({place!r}).save_pretrained(FOLDER), and serve the folder"
        raise InputError(f"{place} holds a pickle, which is never served: {remedy}")


def pointed(source: Source) -> str | None:
    """The version of a registry entry that is in use now; ``None`` where it cannot be read or the source is no entry."""
    try:
        return current(source.place)[0] if source.entry else None
    except (ModelFileError, OSError):
        return None


def pointed_before(source: Source) -> str | None:
    """The version of a registry entry that was in use before the one that is now; ``None`` where there is none."""
    try:
        now = current(source.place)[0] if source.entry else None
        events = [each for each in history(source.place) if each["action"] in ("promote", "force")] if now else []
    except (ModelFileError, OSError):
        return None
    return next((each.get("before") for each in reversed(events) if each["version"] == now), None)
